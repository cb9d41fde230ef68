"""Heartbeats, and whether one stands still."""

from __future__ import annotations

import json
import os
import threading
import time

import pytest
from memory_store import LostStore, MemoryStore

from kdcl_dist.membership.heartbeat import (
    STALE_S,
    Heartbeat,
    HeartbeatThread,
    HeartbeatWatch,
    heartbeat_key,
)


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_a_heartbeat_that_stands_still_is_stale(clock: Clock) -> None:
    watch = HeartbeatWatch(clock)
    assert not watch.is_stale({"count": 1})
    clock.now_s += STALE_S
    assert not watch.is_stale({"count": 1})
    clock.now_s += 0.1
    assert watch.is_stale({"count": 1})
    assert not watch.is_stale({"count": 2})
    assert watch.beats == 2


def test_a_process_that_never_sent_a_heartbeat_is_stale_too(clock: Clock) -> None:
    watch = HeartbeatWatch(clock)
    clock.now_s += STALE_S + 0.1
    assert watch.is_stale(None)
    assert watch.beats == 0


def test_the_limit_can_be_another(clock: Clock) -> None:
    watch = HeartbeatWatch(clock)
    watch.observe({"count": 1})
    clock.now_s += 20
    assert not watch.is_stale({"count": 1}, 20)
    assert watch.is_stale({"count": 1}, 19)


def test_an_observed_heartbeat_counts_from_its_first_observation(clock: Clock) -> None:
    watch = HeartbeatWatch(clock)
    for _ in range(3):
        clock.now_s += 3
        watch.observe({"count": 1})
    assert watch.since == 103
    assert watch.is_stale({"count": 1})
    assert (watch.last, watch.beats) == ({"count": 1}, 1)


def test_a_phase_has_a_step_and_keeps_the_last_one() -> None:
    heartbeat = Heartbeat()
    heartbeat.enter("gather", 4)
    heartbeat.enter("ensemble")
    assert (heartbeat.step, heartbeat.phase) == (4, "ensemble")


def test_the_stack_is_that_of_a_loop_that_stays_in_a_phase() -> None:
    heartbeat = Heartbeat()
    assert heartbeat.stack(after_s=60) is None
    assert "test_the_stack_is_that_of_a_loop" in (heartbeat.stack(after_s=0) or "")


def test_a_heartbeat_tells_what_the_process_does_and_observes_the_others() -> None:
    store, heartbeat = MemoryStore(), Heartbeat()
    thread = HeartbeatThread(store, "a", heartbeat)
    thread.watch(7, {1: "b", 2: "c"})
    store.set(heartbeat_key("b"), json.dumps({"count": 5}))
    heartbeat.enter("forward", 3)
    assert thread.beat()
    sent = json.loads(store.get(heartbeat_key("a")))
    assert sent.items() >= {"count": 0, "generation": 7, "step": 3, "phase": "forward"}.items()
    assert sent["pid"] == os.getpid()
    assert (thread.watches[1].last, thread.watches[2].last) == ({"count": 5}, None)
    assert thread.beat()
    assert json.loads(store.get(heartbeat_key("a")))["count"] == 1
    assert thread.unanswered_since is None


def test_silence_is_told_while_somebody_waits_for_it(clock: Clock) -> None:
    store, told = MemoryStore(), list[int]()
    thread = HeartbeatThread(store, "a", Heartbeat())
    thread.watch(7, {1: "b", 2: "c"})
    for name in "bc":
        thread.watches[1 + (name == "c")] = HeartbeatWatch(clock)
    thread._watched = [(heartbeat_key(name), thread.watches[rank]) for rank, name in ((1, "b"), (2, "c"))]

    def beat(count: int, *alive: str) -> None:
        clock.now_s += 5
        for name in alive:
            store.set(heartbeat_key(name), json.dumps({"count": count}))
        assert thread.beat()

    with thread.on_silence(12, lambda: told.append(1)):
        for count in range(3):
            beat(count, "b", "c")
        beat(3, "b")
        beat(4, "b")
        assert not told, "for 10 s only"
        beat(5, "b")
        assert len(told) == 1
        beat(6, "b", "c")
        assert len(told) == 1, "it is back"
        for count in (7, 8, 9):
            beat(count, "c")
        assert len(told) == 2
    beat(10)
    assert len(told) == 2, "nobody waits any more"


def test_a_store_that_does_not_answer_is_told_while_somebody_waits_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("kdcl_dist.membership.heartbeat.HEARTBEAT_S", 0.01)
    thread, told = HeartbeatThread(MemoryStore(), "a", Heartbeat()), threading.Event()
    thread.unanswered_since = 1.0  # long ago by the clock, as after a machine's sleep
    with thread.on_no_answer(0.05, told.set):
        assert told.wait(30)
    told.clear()
    with thread.on_no_answer(1000, told.set):
        time.sleep(0.1)
    assert not told.is_set(), "as many looks it has not had"
    thread.unanswered_since = None
    with thread.on_no_answer(0.05, told.set):
        time.sleep(0.2)
    assert not told.is_set(), "all are answered"
    assert "kdcl-silence" not in {each.name for each in threading.enumerate()}


def test_the_thread_ends_with_the_store() -> None:
    thread = HeartbeatThread(LostStore(), "a", Heartbeat())
    assert not thread.is_running
    thread.start("127.0.0.1", slow_s=60)
    thread.close(limit_s=10)
    assert thread.is_running
    assert thread.unanswered_since is not None
    assert "kdcl-heartbeat" not in {each.name for each in threading.enumerate()}

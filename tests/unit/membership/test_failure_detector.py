"""The failure detector over a store in memory: its polls, and the errors that it makes of decisions."""

from __future__ import annotations

import json
import os
import threading
import time
from typing import Any

import pytest
from memory_store import LostStore, MemoryStore
from together import at_once

from kdcl_dist.errors import CoordinatorLost, ExchangeBroke, KdclError, StudentFailed, StudentLost
from kdcl_dist.membership import failure_detector
from kdcl_dist.membership.failure_detector import await_all, diagnose, timed_out
from kdcl_dist.membership.monitor import Monitor

NAMES = ["a", "b", "c"]
PROCESSES = [*NAMES, "coordinator"]
CLOSED, LATE = RuntimeError("Connection closed by peer"), RuntimeError("Timed out waiting 5000ms for recv")


def heartbeat(store: MemoryStore, rank: int, **fields: Any) -> None:
    """Write the heartbeat of a process that does not run."""
    beat = {"count": 0, "host": f"host-{rank}", "pid": 100 + rank, "generation": 0}
    activity = {"step": 0, "phase": "start", "stack": None}
    store.set(f"heartbeat/{PROCESSES[rank]}", json.dumps(beat | activity | fields))


def report_broken(store: MemoryStore, how: str, *ranks: int) -> None:
    """What the processes of these ranks write when their exchange breaks."""
    for rank in ranks:
        store.set(f"0/broke/{PROCESSES[rank]}", json.dumps(how))


@pytest.mark.parametrize(("cause", "ended"), [(CLOSED, False), (LATE, True)])
def test_a_limit_is_told_from_a_closed_connection(cause: RuntimeError, ended: bool) -> None:
    assert timed_out(cause) is ended


def test_the_dead_student_is_named_where_it_was() -> None:
    store = MemoryStore()
    monitor = Monitor(store, NAMES, 3, is_gone=lambda name, pid: (name, pid) == ("b", 101))
    monitor.heartbeat.enter("gather", 6)
    heartbeat(store, 1, step=6, phase="forward")
    report_broken(store, "closed", 0, 2)
    error = diagnose(monitor, CLOSED, limit_s=30)
    assert isinstance(error, StudentLost)
    assert "b died; see logs/b.log in the run folder" in str(error)
    assert (error.student, error.step, error.phase, error.host) == ("b", 6, "forward", "host-1")
    assert (monitor.cause, monitor.lost) == (error, [("b", 101)])


def test_an_old_heartbeat_does_not_name_the_phase() -> None:
    store = MemoryStore()
    monitor = Monitor(store, NAMES, 3, is_gone=lambda name, pid: True)
    monitor.heartbeat.enter("gather", 6)
    report_broken(store, "closed", 0, 2)
    heartbeat(store, 1, step=5, phase="backward")
    error = diagnose(monitor, CLOSED, limit_s=30)
    assert (error.step, error.phase) == (6, None)


def test_a_student_that_stands_still_is_named_with_its_stack() -> None:
    store = MemoryStore()
    monitor = Monitor(store, NAMES, 3)
    monitor.heartbeat.enter("gather", 6)
    heartbeat(store, 1, step=5, phase="data", stack="line 1")
    error = diagnose(monitor, LATE, limit_s=30, unfinished=[1])
    assert "b did not answer within limits.step_s" in str(error)
    assert (error.step, error.phase, error.detail) == (5, "data", "line 1")


def test_a_student_without_a_heartbeat_of_the_generation_is_where_the_coordinator_is() -> None:
    store = MemoryStore()
    monitor = Monitor(store, NAMES, 3)
    monitor.enter(1, step=9)
    heartbeat(store, 2, step=4, phase="record")
    error = diagnose(monitor, LATE, limit_s=30, limit_name="limits.startup_s", unfinished=[2])
    assert "c did not answer within limits.startup_s" in str(error)
    assert (error.step, error.phase, error.host) == (9, "start", "host-2")


def test_a_process_that_was_replaced_is_dead_and_not_to_be_ended() -> None:
    store = MemoryStore()
    monitor = Monitor(store, NAMES, 3)
    monitor.enter(0, [0, 1], processes={0: ("host-0", 100), 1: ("host-1", 55)})
    heartbeat(store, 1)
    report_broken(store, "closed", 0)
    error = diagnose(monitor, CLOSED, limit_s=30)
    assert (type(error), error.student, monitor.lost) == (StudentLost, "b", [])


@pytest.mark.parametrize(
    ("cause", "how", "text"),
    [
        (
            CLOSED,
            "closed",
            "the exchange broke although every process lives: RuntimeError: Connection closed",
        ),
        (CLOSED, "late", "a, b, c waited longer than limits.step_s, although every process lives"),
        (LATE, "closed", "coordinator waited longer than limits.step_s, although every process lives"),
    ],
)
def test_nobody_is_lost_where_all_report(cause: RuntimeError, how: str, text: str) -> None:
    store = MemoryStore()
    report_broken(store, how, 0, 1, 2)
    error = diagnose(Monitor(store, NAMES, 3), cause, limit_s=30)
    assert isinstance(error, ExchangeBroke)
    assert text in str(error)


@pytest.mark.parametrize("rank", [0, 3])
def test_a_reported_failure_is_the_diagnosis(rank: int) -> None:
    store = MemoryStore()
    Monitor(store, NAMES, 1).report(StudentFailed("a user's mistake", student="b"))
    monitor = Monitor(store, NAMES, rank)
    error = diagnose(monitor, CLOSED, limit_s=30)
    assert isinstance(error, StudentFailed)
    assert monitor.cause is error


def test_a_coordinator_that_is_stuck_in_its_ensemble_is_named_at_once() -> None:
    store = MemoryStore()
    heartbeat(store, 3, step=2, phase="ensemble", stack="line 1")
    monitor, began = Monitor(store, NAMES, 0), time.monotonic()
    monitor.watches[3].observe(json.loads(store.get("heartbeat/coordinator")))
    error = diagnose(monitor, LATE, limit_s=100)
    assert isinstance(error, CoordinatorLost)
    assert "the coordinator did not answer within limits.step_s" in str(error)
    assert (error.step, error.phase, error.host, error.detail) == (2, "ensemble", "host-3", "line 1")
    assert time.monotonic() - began < 60


def test_a_store_that_is_lost_means_a_lost_coordinator() -> None:
    monitor = Monitor(LostStore(), NAMES, 0)
    error = diagnose(monitor, CLOSED, limit_s=30)
    assert isinstance(error, CoordinatorLost)
    assert monitor.cause is error


def test_who_dies_before_the_group_is_formed_is_found_at_once() -> None:
    store = MemoryStore()
    monitors = [Monitor(store, NAMES, rank) for rank in range(4)]
    monitors[3].is_gone = lambda name, pid: name == "b"
    for monitor in monitors:
        monitor.start_heartbeat("127.0.0.1")
    found: dict[int, KdclError] = {}

    def wait(monitor: Monitor) -> None:
        try:
            await_all(monitor, 60)
        except KdclError as error:
            found[monitor.rank] = error

    threads = [threading.Thread(target=wait, args=(monitors[rank],)) for rank in (0, 2, 3)]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    finally:
        for monitor in monitors:
            monitor.close()
    assert {str(error) for error in found.values()} == {str(found[3])}
    assert (type(found[3]), found[3].student, len(found)) == (StudentLost, "b", 3)
    assert monitors[3].lost == [("b", os.getpid())]


def test_who_is_not_there_when_the_group_is_to_be_formed_is_named() -> None:
    monitor = Monitor(MemoryStore(), NAMES, 3)
    with pytest.raises(StudentLost, match=r"a, b, c did not answer within limits\.startup_s"):
        await_all(monitor, 0.2)


@pytest.fixture
def no_polls(monkeypatch: pytest.MonkeyPatch) -> None:
    """The store wakes those who wait for it; a look every 100 s does for all else."""
    monkeypatch.setattr(failure_detector, "POLL_S", 100.0)


def test_the_diagnosis_waits_for_the_last_that_lives_and_wakes_all(no_polls: None) -> None:
    store = MemoryStore()
    monitors = [Monitor(store, NAMES, rank, is_gone=lambda name, pid: name == "a") for rank in range(4)]
    heartbeat(store, 0)
    found: list[KdclError | None] = [None] * 4

    def work(rank: int) -> None:
        if rank == 2:  # the coordinator waits for it, and the other student for the coordinator
            time.sleep(0.2)
        found[rank] = diagnose(monitors[rank], CLOSED, limit_s=200) if rank else None

    at_once(work, 4, limit_s=60)
    assert [(type(error), error and error.student) for error in found[1:]] == [(StudentLost, "a")] * 3


def test_the_group_forms_once_all_are_ready(no_polls: None) -> None:
    store = MemoryStore()
    monitors = [Monitor(store, NAMES, rank) for rank in range(4)]
    threads = [threading.Thread(target=await_all, args=(monitor, 30)) for monitor in monitors]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()

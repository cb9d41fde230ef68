"""The rendezvous over a store in memory: requests, generations, and the ends of a run."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import pytest
from memory_store import MemoryStore

from kdcl_dist.config.rounds import Kind, Round
from kdcl_dist.errors import CoordinatorLost, DataError, StartupTimeout
from kdcl_dist.membership.generation_spec import GenerationSpec
from kdcl_dist.membership.heartbeat import HeartbeatWatch
from kdcl_dist.membership.monitor import Monitor
from kdcl_dist.membership.rendezvous import Rendezvous, RunCompleted, RunFailed, WorkerInfo
from kdcl_dist.run.checkpoint import Manifest, Part

NAMES = ["a", "b", "c"]
AT = Round(Kind.TRAIN, 1, 12)
START = Manifest(12, {"a": Part("a-12.pt", 3, "ab"), "coordinator": Part("c-12.pt", 5, "cd")})
SPEC = GenerationSpec(2, START, AT, (0, 1), (1,), 2, 4, (2,))


def worker(rank: int) -> WorkerInfo:
    return WorkerInfo(NAMES[rank], "127.0.0.1", os.getpid(), "cpu", 10, 3, {"steps": 4}, {}, {})


@pytest.fixture
def cohort(monkeypatch: pytest.MonkeyPatch) -> list[Rendezvous]:
    """The rendezvous of each of three students, and of the coordinator; they live without heartbeats."""
    monkeypatch.setattr(HeartbeatWatch.is_stale, "__defaults__", (1000.0,))
    store = MemoryStore()
    return [Rendezvous(Monitor(store, NAMES, rank)) for rank in range(4)]


class Join(threading.Thread):
    """A student that joins; its `outcome` is the generation, or the exception instead."""

    def __init__(self, rendezvous: Rendezvous, position: Round | None = None, lost: Any = None) -> None:
        super().__init__()
        self.outcome: Any = None
        self._arguments = rendezvous, position, lost
        self.start()

    def run(self) -> None:
        rendezvous, position, lost = self._arguments
        try:
            self.outcome = rendezvous.join(worker(rendezvous.monitor.rank), position, 60, lost)
        except Exception as error:
            self.outcome = error

    def wait(self) -> Any:
        self.join(60)
        assert not self.is_alive()
        return self.outcome


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_generation_is_announced_to_those_that_are_ready(cohort: list[Rendezvous]) -> None:
    lost = CoordinatorLost("the coordinator died", step=11, phase="gather")
    first, second = Join(cohort[0]), Join(cohort[1], AT, lost)
    ready = cohort[3].assemble([0, 1], 60)
    assert list(ready) == [0, 1]
    assert [pending.info for pending in ready.values()] == [worker(0), worker(1)]
    assert (ready[0].position, ready[0].lost) == (None, None)
    assert ready[1].position == AT
    assert ready[1].lost is not None
    assert ready[1].lost.to_dict() == lost.to_dict()
    cohort[3].announce(SPEC, [0, 1])
    assert [first.wait(), second.wait()] == [SPEC, SPEC]


def test_a_request_is_answered_once(cohort: list[Rendezvous]) -> None:
    first = Join(cohort[0])
    cohort[3].assemble([0], 60)
    cohort[3].announce(SPEC, [0])
    first.wait()
    assert not cohort[3].are_ready([0])
    again = Join(cohort[0], AT)  # it must not take the generation that it has left
    eventually(lambda: cohort[3].are_ready([0]))
    assert again.is_alive()
    following = GenerationSpec(3, None, AT, (0,), (), 2, 4)
    cohort[3].announce(following, [0])
    assert again.wait() == following


def test_a_student_that_is_not_called_keeps_waiting(cohort: list[Rendezvous]) -> None:
    first, late = Join(cohort[0]), Join(cohort[2])
    eventually(lambda: cohort[3].are_ready([0, 2]))
    cohort[3].announce(SPEC, [0])
    assert first.wait() == SPEC
    assert cohort[3].are_ready([2])
    cohort[3].complete(finished=False)
    ended = late.wait()
    assert isinstance(ended, RunCompleted)
    assert not ended.finished


def test_a_failed_run_is_announced_to_students_that_come_later(cohort: list[Rendezvous]) -> None:
    cohort[3].fail(DataError("no such file"))
    ended = Join(cohort[1]).wait()
    assert isinstance(ended, RunFailed)
    assert isinstance(ended.cause, DataError)
    assert ended.cause.message == "no such file"


def test_a_failure_before_the_first_step_ends_the_wait(cohort: list[Rendezvous]) -> None:
    cohort[1].report(DataError("no such file", student="b"))
    with pytest.raises(DataError, match="no such file") as caught:
        cohort[3].assemble([0, 1, 2], 60)
    assert caught.value.student == "b"


def test_failures_outside_of_a_generation_are_returned_once(cohort: list[Rendezvous]) -> None:
    cohort[1].report(DataError("no such file", student="b"))
    assert not cohort[3].are_ready([1])
    assert [error.student for error in cohort[3].failures()] == ["b"]
    assert cohort[3].failures() == []


def test_a_counted_request_that_was_never_written_blocks_no_other(cohort: list[Rendezvous]) -> None:
    cohort[0].client.count("requests", 1)  # and dies
    cohort[1].report(DataError("no such file", student="b"))
    cohort[3].ready()
    assert len(cohort[3].failures()) == 1


def test_who_does_not_come_is_named(cohort: list[Rendezvous]) -> None:
    with pytest.raises(CoordinatorLost, match=r"limits\.startup_s"):
        cohort[0].join(worker(0), None, 0.1)
    with pytest.raises(StartupTimeout, match=r"b, c.*limits\.startup_s"):
        cohort[3].assemble([0, 1, 2], 0.3)


def test_a_letter_of_a_process_that_was_replaced_does_not_count() -> None:
    store = MemoryStore()
    student, coordinator = (Monitor(store, NAMES, rank) for rank in (0, 3))
    student.start_heartbeat("127.0.0.1")
    try:
        for pid, counts in ((os.getpid() + 1, False), (os.getpid(), True)):
            request = WorkerInfo("a", "127.0.0.1", pid, "cpu", 1, 3, {}, {}, {})
            Rendezvous(student)._write({"info": asdict(request), "position": None, "lost": None})
            rendezvous, deadline = Rendezvous(coordinator), time.monotonic() + 60
            while rendezvous.are_ready([0]) != counts:
                assert time.monotonic() < deadline
            assert list(rendezvous.ready()) == [0] * counts
    finally:
        student.close()


def test_who_dies_while_it_waits_for_the_others_is_awaited_anew() -> None:
    store, gone = MemoryStore(), set[int]()
    coordinator = Rendezvous(Monitor(store, NAMES, 3, is_gone=lambda name, pid: pid in gone))
    monitors = [Monitor(store, NAMES, rank) for rank in (0, 1)]
    for monitor in monitors:
        monitor.start_heartbeat("127.0.0.1")
    try:
        for rank, monitor in enumerate(monitors):
            request = {"info": asdict(replace(worker(rank), pid=os.getpid())), "position": None, "lost": None}
            Rendezvous(monitor)._write(request)
        assert list(coordinator.assemble([0, 1], 60)) == [0, 1]
        gone.add(os.getpid())  # its heartbeat is no older than a second
        with pytest.raises(StartupTimeout, match="a, b"):
            coordinator.assemble([0, 1], 0.3)
    finally:
        for monitor in monitors:
            monitor.close()


def test_who_is_to_join_waits_outside_of_the_cohort() -> None:
    """Until its recipe is taken over: nobody counts it as ready, and its failure is not the cohort's."""
    store, gone = MemoryStore(), set[int]()
    coordinator = Rendezvous(Monitor(store, NAMES, 3, is_gone=lambda name, pid: pid in gone))
    newcomer = Monitor(store, [*NAMES, "d"], 3)
    newcomer.start_heartbeat("127.0.0.1")
    try:
        other = Rendezvous(Monitor(store, [*NAMES, "x", "d"], 4))
        other.report(DataError("no such file", student="d"))
        info = WorkerInfo("d", "127.0.0.1", os.getpid(), "cpu", 1, 3, {}, {}, {})
        assert not coordinator.wait_to_join({"d": 3})
        Rendezvous(newcomer)._write({"info": asdict(info), "position": None, "lost": None})
        assert coordinator.wait_to_join({"d": 3})
        assert not coordinator.wait_to_join({"d": 4}), "it is of another place in the recipe"
        assert coordinator.failures() == []
        assert not coordinator.ready()
        coordinator.publish(1, {"students": ["a", "d"]})
        assert other.cohort(1) == {"students": ["a", "d"]}
        coordinator.monitor.adopt([*NAMES, "d"])
        assert coordinator.monitor.is_coordinator
        assert [*coordinator.ready()] == [3]
        gone.add(os.getpid())
        assert not coordinator.wait_to_join({"d": 3})
    finally:
        newcomer.close()


def test_who_waits_is_woken(cohort: list[Rendezvous], monkeypatch: pytest.MonkeyPatch) -> None:
    """A look at the store every 100 s does for all but what the store does not tell."""
    monkeypatch.setattr("kdcl_dist.membership.rendezvous.POLL_S", 100.0)
    *students, coordinator = cohort
    for number in range(3):
        assembled: list[Any] = []
        waits = threading.Thread(target=lambda: assembled.append(coordinator.assemble([0, 1], 200)))  # noqa: B023
        waits.start()
        eventually(lambda: coordinator.missing == {0, 1})
        joins = [Join(student, AT if number else None) for student in students[:2]]
        waits.join(60)
        assert list(assembled[0]) == [0, 1]
        coordinator.announce(replace(SPEC, number=number), [0, 1])
        assert [join.wait().number for join in joins] == [number, number]

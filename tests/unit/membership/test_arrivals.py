"""Who is awaited and will not come, over a store in memory; the clock is the test's."""

from __future__ import annotations

import json

import pytest
from memory_store import MemoryStore

from kdcl_dist.errors import KdclError, StartupTimeout, StudentLost
from kdcl_dist.membership import arrivals, heartbeat
from kdcl_dist.membership.arrivals import Arrivals
from kdcl_dist.membership.heartbeat import heartbeat_key
from kdcl_dist.membership.monitor import Monitor

LIMIT_S, SILENT_S = 40.0, 10.0


class Awaited:
    """Students a, b and c, of which the coordinator awaits b and c.

    Attributes:
        now: seconds on the clock.
        dead: the process ids that the launcher knows to be dead.
        started: the names of which the launcher has started processes.
    """

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.now, self.dead, self.started = 100.0, set[int](), {"a", "b", "c"}
        patch.setattr(arrivals.time, "monotonic", lambda: self.now)
        patch.setattr(heartbeat.HeartbeatWatch.__init__, "__defaults__", (lambda: self.now,))
        self.store = MemoryStore()
        self.monitor = Monitor(self.store, "abc", 3, is_gone=lambda name, pid: pid in self.dead)
        self.arrivals = Arrivals(self.monitor, lambda name: name in self.started)

    def wait(self, seconds: float, *beating: tuple[int, int]) -> KdclError | None:
        """The first failure within some seconds, in which (rank, process id) send heartbeats."""
        for _ in range(round(seconds)):
            self.now += 1
            for rank, pid in beating:
                beat = {"host": f"h{rank}", "pid": pid, "count": self.now, "stack": "line 1"}
                self.store.set(heartbeat_key("abc"[rank]), json.dumps(beat))
            if (error := self.arrivals.failure({1, 2}, LIMIT_S)) is not None:
                return error
        return None


@pytest.fixture
def awaited(monkeypatch: pytest.MonkeyPatch) -> Awaited:
    return Awaited(monkeypatch)


def test_those_that_hang_are_named_with_their_processes(awaited: Awaited) -> None:
    assert awaited.wait(LIMIT_S, (1, 11), (2, 22)) is None
    error = awaited.wait(2, (1, 11), (2, 22))
    assert isinstance(error, StartupTimeout)
    assert "b, c did not join within 40 s (limits.startup_s)" in error.message
    assert (error.student, error.step, error.phase, error.host) == ("b", None, "start", "h1")
    assert error.detail == "line 1"
    assert awaited.monitor.lost == [("b", 11), ("c", 22)]
    assert awaited.wait(LIMIT_S, (1, 12), (2, 23)) is None, "the next processes have the same time"


def test_one_that_is_stopped_is_named_earlier_and_alone(awaited: Awaited) -> None:
    assert awaited.wait(2, (1, 11), (2, 22)) is None
    error = awaited.wait(SILENT_S + 3, (1, 11))
    assert isinstance(error, StudentLost)
    assert "c gave no sign of life for 10 s" in error.message
    assert (error.student, awaited.monitor.lost) == ("c", [("c", 22)])
    assert awaited.wait(SILENT_S - 1, (1, 11)) is None, "it is about to be replaced"


def test_a_dead_process_is_awaited_until_another_has_had_its_time(awaited: Awaited) -> None:
    awaited.wait(1, (1, 11), (2, 22))
    awaited.dead.add(22)
    assert awaited.wait(30) is not None  # b is silent
    awaited.arrivals.clear()
    assert awaited.wait(30, (1, 11)) is None
    assert awaited.wait(9, (1, 12), (2, 23)) is None
    assert awaited.wait(LIMIT_S - 10, (1, 12), (2, 23)) is None
    error = awaited.wait(12, (1, 12), (2, 23))
    assert error is not None
    assert awaited.monitor.lost == [("b", 12), ("c", 23)]


def test_a_process_that_has_not_reported_is_ended_whatever_its_id_is(awaited: Awaited) -> None:
    awaited.wait(1, (2, 22))
    awaited.dead.add(22)
    error = awaited.wait(LIMIT_S + 2)
    assert isinstance(error, StartupTimeout)
    assert error.student == "b"
    assert awaited.monitor.lost == [("b", None), ("c", None)]


def test_one_for_which_nothing_was_started_waits_for_resources(awaited: Awaited) -> None:
    awaited.started.remove("c")
    error = awaited.wait(LIMIT_S + 2, (1, 11))
    assert isinstance(error, StartupTimeout)
    assert error.student is None, "nothing that is started again could help"
    assert error.message.startswith("c did not join within 40 s (limits.startup_s): does every student find")
    assert awaited.monitor.lost == []


def test_nobody_is_named_whom_no_one_awaits(awaited: Awaited) -> None:
    awaited.wait(LIMIT_S - 5, (1, 11), (2, 22))
    awaited.now += 1
    assert awaited.arrivals.failure(set(), LIMIT_S) is None
    assert awaited.wait(LIMIT_S - 5, (1, 11), (2, 22)) is None

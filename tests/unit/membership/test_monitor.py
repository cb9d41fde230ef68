"""The monitor over a store in memory."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from memory_store import LostStore, MemoryStore

from kdcl_dist.errors import CoordinatorLost, StudentFailed, StudentLost
from kdcl_dist.membership.monitor import COORDINATOR, Monitor

NAMES = ["a", "b", "c"]
Monitors = list[Monitor]


@pytest.fixture
def monitors() -> Iterator[Monitors]:
    """Those of three students and of the coordinator."""
    store = MemoryStore()
    made = [Monitor(store, NAMES, rank) for rank in range(4)]
    yield made
    for monitor in made:
        monitor.close()


def await_heartbeat(monitor: Monitor, rank: int) -> dict[str, object]:
    deadline = time.monotonic() + 60
    while (heartbeat := monitor.heartbeat_of(rank)) is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return heartbeat


def test_the_last_rank_is_the_coordinator(monitors: Monitors) -> None:
    assert [monitor.is_coordinator for monitor in monitors] == [False, False, False, True]
    assert [monitor.name for monitor in monitors] == [*NAMES, COORDINATOR]
    assert [list(monitor.watches) for monitor in monitors] == [[3], [3], [3], [0, 1, 2]]


def test_only_the_first_failure_stands(monitors: Monitors) -> None:
    first, second = StudentFailed("first", student="a"), StudentLost("second", student="b")
    assert monitors[0].report(first) is first
    assert str(monitors[1].report(second)) == str(first)
    assert isinstance(monitors[1].failure(), StudentFailed)


def test_a_failure_is_of_its_generation(monitors: Monitors) -> None:
    monitors[0].report(StudentFailed("first", student="a"))
    with pytest.raises(StudentFailed, match="first"):
        monitors[3].raise_failure()
    assert isinstance(monitors[3].cause, StudentFailed)
    monitors[3].enter(1, [0, 2], step=8)
    monitors[3].raise_failure()
    assert (monitors[3].cause, monitors[3].present, monitors[3].heartbeat.step) == (None, [0, 2], 8)
    assert list(monitors[3].watches) == [0, 2]


def test_a_failure_has_the_host_of_the_worker_that_failed(monitors: Monitors) -> None:
    monitors[1].start_heartbeat("10.0.0.7")
    await_heartbeat(monitors[3], 1)
    error = monitors[3].report(StudentLost("b died", student="b"))
    assert error.host == "10.0.0.7"


def test_a_heartbeat_enters_a_generation_at_once(monitors: Monitors) -> None:
    monitors[0].start_heartbeat("127.0.0.1")
    await_heartbeat(monitors[3], 0)
    monitors[0].enter(4, step=12)
    heartbeat = monitors[3].heartbeat_of(0)
    assert heartbeat is not None
    assert (heartbeat["generation"], heartbeat["step"], heartbeat["phase"]) == (4, 12, "start")


def test_a_lost_coordinator_has_the_phase_of_its_last_heartbeat(monitors: Monitors) -> None:
    student = monitors[0]
    student.heartbeat.enter("broadcast", 5)
    error = student.coordinator_lost("died")
    assert (error.message, error.phase, error.host) == ("the coordinator died", "broadcast", None)
    student.watches[3].observe({"step": 6, "phase": "record", "host": "h", "stack": "line 1"})
    error = student.coordinator_lost("died")
    assert (error.step, error.phase, error.host, error.detail) == (6, "record", "h", "line 1")
    student.watches[3].observe({"step": 4, "phase": "record", "host": "h", "stack": None})
    assert student.coordinator_lost("died").phase == "broadcast"


def test_a_store_that_is_lost_is_the_cause() -> None:
    monitor = Monitor(LostStore(), NAMES, 0)
    with pytest.raises(CoordinatorLost, match="died or cannot be reached") as caught:
        monitor.failure()
    assert monitor.cause is caught.value
    error = StudentFailed("its own", student="a")
    assert monitor.report(error) is error
    monitor.report_departure()


def test_the_coordinator_waits_for_departures(monitors: Monitors) -> None:
    for rank in (0, 1, 2):
        monitors[rank].report_departure()
    began = time.monotonic()
    monitors[3].await_departures(100)
    assert time.monotonic() - began < 60
    monitors[1].start_heartbeat("127.0.0.1")  # a process that follows has not left
    began = time.monotonic()
    monitors[3].await_departures(0.3)
    assert time.monotonic() - began >= 0.3

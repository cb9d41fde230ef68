"""For whom the cohort waits, by the heartbeats that the coordinator has observed."""

from __future__ import annotations

import time
from typing import Any

import pytest
from memory_store import MemoryStore

from kdcl_dist.coordinator.wait_report import AFTER_S, WaitReport
from kdcl_dist.membership.heartbeat import STALE_S
from kdcl_dist.membership.monitor import Monitor
from kdcl_dist.run.events import Event, Waiting

NAMES = ["a", "b", "c/0"]


class Coordinator:
    """A coordinator's monitor, and a clock that stands `seconds` after its last phase began."""

    def __init__(self) -> None:
        self.monitor, self.seconds = Monitor(MemoryStore(), NAMES, 3), 0.0
        self.missing: set[int] = set()
        self.told: list[Event] = []
        self.report = WaitReport(self.monitor, lambda: self.missing, self.told.append, self.clock)

    def clock(self) -> float:
        return self.monitor.heartbeat.since + self.seconds

    def observe(self, rank: int, step: int, phase: str, ago_s: float = 0.0) -> None:
        watch = self.monitor.watches[rank]
        watch.observe({"step": step, "phase": phase})
        watch.since = self.clock() - ago_s

    def look(self) -> list[Any]:
        self.told.clear()
        self.report.look()
        return list(self.told)


@pytest.fixture
def coordinator() -> Coordinator:
    return Coordinator()


def test_nothing_is_said_of_short_waits(coordinator: Coordinator) -> None:
    coordinator.seconds = AFTER_S - 0.1
    assert coordinator.look() == []


def test_those_that_have_not_joined(coordinator: Coordinator) -> None:
    coordinator.monitor.enter(0)
    coordinator.missing, coordinator.seconds = {2, 0}, AFTER_S
    assert coordinator.look() == [Waiting("start", 0, AFTER_S, ("a", "c/0"))]


def test_those_that_have_not_sent_their_message(coordinator: Coordinator) -> None:
    coordinator.monitor.heartbeat.enter("gather", 7)
    coordinator.seconds = 12.0
    coordinator.observe(0, 7, "broadcast")
    coordinator.observe(1, 7, "forward")
    coordinator.observe(2, 8, "data")  # it loads the next batch
    assert coordinator.look() == [Waiting("gather", 7, pytest.approx(12.0), ("b",))]


def test_one_that_gives_no_sign_of_life(coordinator: Coordinator) -> None:
    coordinator.monitor.heartbeat.enter("gather", 7)
    coordinator.seconds = 12.0
    coordinator.observe(0, 7, "broadcast", ago_s=STALE_S + 1)
    coordinator.observe(1, 7, "broadcast")
    assert coordinator.look()[0].late == ("a",)


@pytest.mark.parametrize("phase", ["checkpoint", "record", "ensemble"])
def test_the_coordinator_itself(coordinator: Coordinator, phase: str) -> None:
    coordinator.monitor.heartbeat.enter(phase, 7)
    coordinator.seconds = 12.0
    coordinator.observe(1, 7, "data")
    assert coordinator.look()[0].late == ("coordinator",)


def test_the_thread_looks(coordinator: Coordinator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kdcl_dist.coordinator.wait_report.LOOK_S", 0.01)
    coordinator.seconds = 12.0
    with coordinator.report:
        while not coordinator.told:
            time.sleep(0.01)
    assert isinstance(coordinator.told[0], Waiting)

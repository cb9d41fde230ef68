"""The coordinator's process on Ray is replaced at once when it dies or is stopped; Ray does not run."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from cohorts import MakeRecipe

from kdcl_dist.errors import CoordinatorLost
from kdcl_dist.launch.messages import CohortAsked, EventEmitted
from kdcl_dist.launch.ray import coordinator_process
from kdcl_dist.launch.ray.coordinator_process import CoordinatorProcess
from kdcl_dist.membership.endpoint import Endpoint
from kdcl_dist.run.events import CheckpointSaved, Event, Note
from kdcl_dist.run.record import update_record
from kdcl_dist.run.run import Run
from kdcl_dist.utils.process import is_over

#: Seconds that nothing here takes, on any machine.
LIMIT_S = 240.0


class Supervised:
    """A process under supervision; its port is its process id."""

    def __init__(self, run: Run) -> None:
        self.events, self.result = list[Event | CohortAsked](), list[Any]()
        processes: Any = SimpleNamespace(has=lambda name: name == "a")
        self.process = CoordinatorProcess(run, processes, self.events.append)
        self.thread = threading.Thread(target=self._supervise, daemon=True)
        self.thread.start()

    def _supervise(self) -> None:
        try:
            self.result.append(self.process.supervise())
        except Exception as error:
            self.result.append(error)

    def find(self, lost: str | None) -> Endpoint:
        found = self.process.find(lost, LIMIT_S)
        assert found is not None
        return found

    def end(self) -> Any:
        self.thread.join(LIMIT_S)
        return self.result[0]

    def until(self, text: str) -> None:
        deadline = time.monotonic() + LIMIT_S
        while Note(text) not in self.events:
            assert time.monotonic() < deadline, self.events
            time.sleep(0.01)


@pytest.fixture
def run(make_run: Callable[..., Run], make_recipe: MakeRecipe) -> Run:
    return make_run(make_recipe("failure.max_failures=2", "limits.startup_s=120"))


@pytest.fixture
def supervise(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Run], Supervised]]:
    """Begins to supervise a process of tests/support/forked.py."""
    monkeypatch.setattr(coordinator_process, "ENTRY", "forked:coordinate")
    address = SimpleNamespace(get_node_ip_address=lambda: "127.0.0.1")
    monkeypatch.setattr(coordinator_process, "ray", SimpleNamespace(util=address))
    made: list[Supervised] = []

    def supervise(run: Run) -> Supervised:
        made.append(Supervised(run))
        return made[-1]

    yield supervise
    for supervised in made:
        supervised.process.stop()
        supervised.thread.join(LIMIT_S)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_dead_or_stopped_process_is_replaced_as_soon_as_a_member_says_so(
    number: int, run: Run, supervise: Callable[[Run], Supervised]
) -> None:
    """No member waits for a limit, as where only Ray knew that the coordinator hangs."""
    one = supervise(run)
    first = one.find(None)
    os.kill(first.port, number)
    second = one.find(first.id)
    assert second.id != first.id
    assert is_over(first.port)
    assert one.find(first.id) == second, "told by another member: the next one is not ended"
    one.process.stop()
    assert one.end() is False
    assert one.process.find(second.id, LIMIT_S) is None


def test_what_is_asked_of_the_run_reaches_the_next_process_too(
    run: Run, supervise: Callable[[Run], Supervised]
) -> None:
    one = supervise(run)
    one.process.notice("a host is to go")  # maybe before there is a process
    one.until("a host is to go")
    one.until("has: True")
    first = one.find(None)
    with one.process._changed:  # so that the process meets the request at its start
        os.kill(first.port, signal.SIGKILL)
        one.process.stops = True
    assert one.end() is False


def test_a_notice_reaches_the_next_process_until_a_checkpoint_is_taken(
    run: Run, supervise: Callable[[Run], Supervised]
) -> None:
    """The one that got it may have died before it took one."""
    one = supervise(run)
    first = one.find(None)
    one.process.notice("a host is to go")
    one.until("a host is to go")
    os.kill(first.port, signal.SIGKILL)
    second = one.find(first.id)
    one.process.notice("later")
    one.until("later")
    assert one.events.count(Note("a host is to go")) == 2
    assert one.process.process is not None
    one.process._handle(one.process.process, EventEmitted(CheckpointSaved(3)))
    os.kill(second.port, signal.SIGKILL)
    one.find(second.id)
    one.process.notice("last")
    one.until("last")
    assert one.events.count(Note("a host is to go")) == 2


def test_a_process_that_dies_too_often_ends_the_run(run: Run, supervise: Callable[[Run], Supervised]) -> None:
    one, lost = supervise(run), None
    for _ in range(3):
        lost = one.find(lost).id
        os.kill(one.process.endpoint.port, signal.SIGKILL)
    error = one.end()
    assert isinstance(error, CoordinatorLost)
    assert "killed by SIGKILL" in str(error)
    assert "logs/coordinator.log" in str(error)


def test_a_process_that_dies_after_the_end_loses_nothing(
    run: Run, supervise: Callable[[Run], Supervised]
) -> None:
    one, lost = supervise(run), None
    update_record(run.folder, state="finished")
    for _ in range(3):
        found = one.find(lost)
        lost = found.id
        os.kill(found.port, signal.SIGKILL)
    assert one.end() is True


def test_a_process_that_opens_no_store_is_replaced(
    make_run: Callable[..., Run],
    make_recipe: MakeRecipe,
    supervise: Callable[[Run], Supervised],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(coordinator_process, "ENTRY", "forked:opens_nothing")
    monkeypatch.setattr(coordinator_process, "OPEN_SHARE", 1000)
    one = supervise(make_run(make_recipe("failure.max_failures=0", "limits.startup_s=120")))
    error = one.end()
    assert isinstance(error, CoordinatorLost)
    assert "ended, since it did not open its store" in str(error)


def test_the_driver_is_told_who_is_to_join(run: Run, supervise: Callable[[Run], Supervised]) -> None:
    one = supervise(run)
    one.find(None)
    assert one.process.process is not None
    one.process._handle(one.process.process, asked := CohortAsked(run.recipe, run.recipe))
    assert asked in one.events

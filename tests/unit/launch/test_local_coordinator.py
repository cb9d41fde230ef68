"""The local launcher, its coordinator, and who is to join a run; most of its processes are made up."""

from __future__ import annotations

import threading
from collections.abc import Callable
from multiprocessing import Pipe
from types import SimpleNamespace
from typing import Any

import pytest
from cohorts import MakeRecipe

from kdcl_dist.errors import StudentLost
from kdcl_dist.launch import local
from kdcl_dist.launch.forkserver import start_server
from kdcl_dist.launch.messages import EndpointOpened, Finished, RunEndedByFailure
from kdcl_dist.launch.processes import Process, await_ready, finish, receive, start
from kdcl_dist.membership.endpoint import Endpoint
from kdcl_dist.run.cohort_requests import apply
from kdcl_dist.run.events import Event
from kdcl_dist.run.run import Run


class Child:
    """A process that says what a test lets it say, and lives until it is killed."""

    def __init__(self) -> None:
        self.link, self.own_link = Pipe()
        self.sentinel, self._life = Pipe()
        self.pid, self.exitcode = 1, None

    def is_alive(self) -> bool:
        return not self._life.closed

    def kill(self) -> None:
        for end in (self._life, self.own_link):
            end.close()

    terminate = kill

    def join(self, timeout: float | None = None) -> None:
        """It does not end by itself."""


def test_a_coordinator_that_does_not_open_its_store_is_made_again_while_a_student_waits_to_be(
    make_recipe: MakeRecipe, make_run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[tuple[str, Child]] = []

    def start(context: Any, name: str, *arguments: Any, **more: Any) -> Process:
        child = Child()
        coordinators = [other for other_name, other in started if other_name == "coordinator"]
        started.append((name, child))
        if name == "coordinator" and len(coordinators) != 1:  # the second one is silent
            child.own_link.send(EndpointOpened(Endpoint("127.0.0.1", len(started))))
            if coordinators:
                child.own_link.send(Finished(True))
        if name == "b":  # all have been started: the coordinator and a student die at once
            coordinators[0].kill()
            started[1][1].kill()
        return Process(name, child, child.link)  # type: ignore[arg-type]

    monkeypatch.setattr(local, "start_server", lambda for_run: SimpleNamespace(Event=threading.Event))
    monkeypatch.setattr(local, "start", start)
    monkeypatch.setattr(local, "GRACE_S", 0.1)
    recipe = make_recipe("failure.max_failures=8", "limits.startup_s=2")
    assert local.launch(make_run(recipe), lambda event: None, threading.Event())
    names = [name for name, _ in started]
    assert names[:3] == ["coordinator", "a", "b"]
    assert names.count("coordinator") == 3


def test_sigterm_to_all_processes_ends_no_coordinator() -> None:
    """As of a batch system: the launcher gets it too, and asks for a checkpoint and the end."""
    process = start(start_server(), "coordinator", "forked:terminated", limit_s=120.0)
    for message in (EndpointOpened, Finished):
        assert await_ready([process], 120.0)
        assert isinstance(receive(process), message)
    finish(process)


@pytest.fixture
def events() -> list[Event]:
    return []


@pytest.fixture
def cohort(
    make_recipe: MakeRecipe,
    make_run: Callable[..., Run],
    monkeypatch: pytest.MonkeyPatch,
    events: list[Event],
) -> local._Cohort:
    """A cohort none of whose processes is started."""
    monkeypatch.setattr(local, "start_server", lambda for_run: None)
    return local._Cohort(make_run(make_recipe("epochs=4")), events.append, threading.Event())


def a_process(name: str) -> tuple[Process, Child]:
    child = Child()
    return Process(name, child, child.link), child  # type: ignore[arg-type]


def test_who_waits_to_join_is_not_refused_since_the_run_fails(
    cohort: local._Cohort, events: list[Event]
) -> None:
    newcomer, child = a_process("c")
    cohort.newcomers.processes["c"] = newcomer
    child.own_link.send(RunEndedByFailure(StudentLost("it died", student="a")))
    cohort._handle(newcomer, receive(newcomer))
    cohort._replace_failed()
    assert cohort.is_over
    assert not events
    assert [*cohort.newcomers.processes] == ["c"]


def test_a_student_that_asks_again_gets_a_device_that_is_free(
    cohort: local._Cohort, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one that it was given before may be another's by now."""
    given: dict[str, Any] = {}
    monkeypatch.setattr(local, "assign_devices", lambda recipe, count: [*"0123"][: len(recipe.workers)])
    monkeypatch.setattr(cohort, "_start", lambda name, *arguments: given.update({name: arguments[-1]}))
    cohort.devices = {"a": "0", "b": "1"}
    recipe = cohort.run.recipe
    asked = [{"add": {"name": name, "model": "mlp"}} for name in "cd"]
    cohort._start_newcomer("c", apply(recipe, asked[0], 1))  # and it is refused
    cohort._start_newcomer("d", other := apply(recipe, asked[1], 1))
    cohort.newcomers.processes["d"] = a_process("d")[0]
    cohort._start_newcomer("c", apply(other, asked[0], 1))
    assert given == {"d": "2", "c": "3"}


def test_the_death_of_a_coordinator_is_not_taken_for_its_end(cohort: local._Cohort) -> None:
    coordinator, _ = a_process("coordinator")
    coordinator.ended = True
    cohort.processes, cohort.limit_s = [coordinator], 0.0
    cohort._end_late_coordinator()
    assert coordinator.end_reason is None

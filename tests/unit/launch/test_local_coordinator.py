"""The local launcher and a coordinator that does not open its store; its processes are made up."""

from __future__ import annotations

import threading
from collections.abc import Callable
from multiprocessing import Pipe
from types import SimpleNamespace
from typing import Any

import pytest
from cohorts import MakeRecipe

from kdcl_dist.launch import local
from kdcl_dist.launch.messages import EndpointOpened, Finished
from kdcl_dist.launch.processes import Process
from kdcl_dist.membership.endpoint import Endpoint
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

    monkeypatch.setattr(local, "start_server", lambda: SimpleNamespace(Event=threading.Event))
    monkeypatch.setattr(local, "start", start)
    monkeypatch.setattr(local, "GRACE_S", 0.1)
    recipe = make_recipe("failure.max_failures=8", "limits.startup_s=2")
    assert local.launch(make_run(recipe), lambda event: None, threading.Event())
    names = [name for name, _ in started]
    assert names[:3] == ["coordinator", "a", "b"]
    assert names.count("coordinator") == 3

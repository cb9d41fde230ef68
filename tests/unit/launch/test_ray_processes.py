"""What the coordinator's actor knows of the cohort's processes; Ray does not run."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import RayActorError

from kdcl_dist.launch.ray import processes
from kdcl_dist.launch.ray.processes import RayProcesses


class Worker:
    """A worker of Ray: its answer to a ping is the worker itself, and comes when a test says so."""

    def __init__(self) -> None:
        self.answers, self.is_dead = False, False
        self.__ray_call__ = SimpleNamespace(remote=lambda function: self)


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> RayProcesses:
    def get(worker: Worker) -> None:
        if worker.is_dead:
            raise RayActorError

    def wait(workers: list[Worker], timeout: float) -> tuple[list[Worker], list[Any]]:
        return [worker for worker in workers if worker.answers], []

    context = SimpleNamespace(get_node_id=lambda: "head")
    ray = SimpleNamespace(get_runtime_context=lambda: context, get=get, wait=wait)
    monkeypatch.setattr(processes, "ray", ray)
    return RayProcesses()


def test_processes_of_two_hosts_may_have_the_same_id(known: RayProcesses) -> None:
    """As in containers, which count alike."""
    dead, alive = Worker(), Worker()
    known.register("a", 70, "one", dead)
    known.register("b", 70, "other", alive)
    assert not known.is_gone("a", 70)
    dead.answers = dead.is_dead = True
    assert not known.is_gone("b", 70)
    assert known.is_gone("a", 70)
    alive.answers = True
    assert not known.is_gone("b", 70)

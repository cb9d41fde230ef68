"""What the coordinator's actor knows of the cohort's processes; Ray does not run."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import ActorUnavailableError, GetTimeoutError, RayActorError

from kdcl_dist.launch.ray import processes
from kdcl_dist.launch.ray.common import end_stopped
from kdcl_dist.launch.ray.processes import RayProcesses
from kdcl_dist.utils.process import state_of


class Worker:
    """A worker of Ray: its answer to a ping is the worker itself, and comes when a test says so."""

    def __init__(self) -> None:
        self.answers, self.is_dead = False, False
        self.asked = list[tuple[str, int]]()
        self.__ray_call__ = SimpleNamespace(remote=self.call)

    def call(self, function: Callable[..., None], *arguments: int) -> Worker:
        self.asked += [(function.__name__, *arguments)] if arguments else []  # type: ignore[list-item]
        return self


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


def test_a_worker_that_is_out_of_reach_is_ended_itself(
    known: RayProcesses, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one whose host is gone: Ray itself notices that a quarter of a minute later."""
    killed: list[Worker] = []
    for error in (GetTimeoutError(), ActorUnavailableError("unreachable", b"0" * 16), None):

        def get(worker: Worker, timeout: float, error: Exception | None = error) -> None:
            if error is not None:
                raise error

        def kill(worker: Worker, no_restart: bool) -> None:
            assert not no_restart, "Ray starts an actor again that a student has joined with"
            killed.append(worker)

        monkeypatch.setattr(processes, "ray", SimpleNamespace(get=get, kill=kill))
        known.register("a", 70, "one", worker := Worker())
        known.end("a", 70)
        assert worker.asked == [("end_process", 70)]
        assert killed == ([] if error is None else [worker])
        killed.clear()


def test_a_process_that_its_dead_worker_left_stopped_is_ended_by_another_of_that_host(
    known: RayProcesses,
) -> None:
    """It cannot notice itself that its worker has died."""
    known.register("c", 72, "one", dead := Worker())
    known.register("b", 71, "one", there := Worker())
    known.register("a", 70, "one", Worker())
    known.register("a", 90, "other", Worker())
    assert there.asked == dead.asked == [("end_stopped", 70)]
    known.register("a", 0, "other", Worker())
    known.register("a", 91, "other", Worker())
    known.register("a", 91, "other", Worker())  # under another coordinator
    assert len(there.asked) == 1


@pytest.mark.parametrize("stopped", [True, False])
def test_a_process_is_left_alone_unless_it_is_stopped(stopped: bool) -> None:
    """Another may have the process id of one that has ended."""
    process = subprocess.Popen(["sleep", "600"])
    try:
        if stopped:
            process.send_signal(signal.SIGSTOP)
            while state_of(process.pid) != "T":
                time.sleep(0.01)
        end_stopped(None, process.pid)
        assert (process.wait(240) == -signal.SIGKILL) if stopped else (process.poll() is None)
    finally:
        process.kill()
        process.wait(240)

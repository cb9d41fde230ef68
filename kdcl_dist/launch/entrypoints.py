"""The functions that a cohort's processes run.

Each process sends messages (see `messages`) to the launcher that started it on the same machine. The last
message says how the process's work ended.
"""

from __future__ import annotations

import ctypes
import gc
import signal
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection

import torch

from kdcl_dist.coordinator.assistant import run_assistant
from kdcl_dist.coordinator.runtime import run_coordinator
from kdcl_dist.errors import CoordinatorLost, wrap
from kdcl_dist.exchange.member import Find
from kdcl_dist.launch.coordinator_link import CoordinatorLink, LinkToHosts
from kdcl_dist.launch.messages import (
    CoordinatorUnreachable,
    EndpointOpened,
    Failed,
    Finished,
    RunEndedByFailure,
)
from kdcl_dist.membership.endpoint import Endpoint
from kdcl_dist.membership.monitor import COORDINATOR
from kdcl_dist.membership.rendezvous import RunFailed
from kdcl_dist.membership.tcp_store import host_store
from kdcl_dist.run.run import Run
from kdcl_dist.student.runtime import run_student
from kdcl_dist.utils.devices import choose_device
from kdcl_dist.utils.process import end_with_parent

__all__ = ["assist", "coordinate", "train"]

#: A constant of Linux's prctl; the kernel keeps 15 bytes of the name.
PR_SET_NAME = 15


def coordinate(link: Connection, run: Run, host: str, across_hosts: bool) -> None:
    """Host the store of a run, and coordinate the run.

    Args:
        link: the pipe to the launcher.
        run: the run.
        host: this host's address.
        across_hosts: whether the cohort's processes are on several hosts, and the launcher knows of them.
    """

    def work() -> bool:
        """Coordinate the run, and host its store."""
        store, endpoint = host_store(host)
        link.send(EndpointOpened(endpoint))
        launcher = LinkToHosts(link) if across_hosts else CoordinatorLink(link)
        stop, emit = launcher.stop.is_set, launcher.emit
        try:
            return run_coordinator(run, store, host=host, stop=stop, emit=emit, processes=launcher)
        finally:
            launcher.close()

    # Where all processes get it, as from a batch system, the launcher asks for a stop.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    _name_process(COORDINATOR)
    _report(link, work, student=None)


def train(
    link: Connection, run: Run, rank: int, endpoint: Endpoint, host: str, device: str, took_over: str = ""
) -> None:
    """Train the student, or replica, of one rank.

    Args:
        link: the pipe to the launcher.
        run: the run.
        rank: the worker's index in the cohort.
        endpoint: where the coordinator's store listens.
        host: this host's address.
        device: the name of a torch device, or "auto".
        took_over: see `kdcl_dist.membership.rendezvous.WorkerInfo`.
    """
    asked_to_stop: list[bool] = []  # an Event has a lock, on which a second signal would wait for the first
    signal.signal(signal.SIGTERM, lambda *_: asked_to_stop.append(True))
    find_endpoint = _finder(link, endpoint, run)

    def work() -> bool:
        """Train the student."""
        chosen = choose_device(device) if device == "auto" else torch.device(device)
        return run_student(
            run,
            rank,
            find_endpoint,
            host=host,
            device=chosen,
            stop=lambda: bool(asked_to_stop),
            took_over=took_over,
        )

    _name_process(run.recipe.workers[rank].name)
    _report(link, work, student=run.recipe.workers[rank].name)


def assist(link: Connection, run: Run, rank: int, endpoint: Endpoint, host: str) -> None:
    """Assist the coordinator as the process of one rank.

    Args:
        link: the pipe to the launcher.
        run: the run.
        rank: index in `run.recipe.members`.
        endpoint: where the coordinator's store listens.
        host: this host's address.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # students ask for a stop; the coordinator decides
    name = run.recipe.members[rank]
    _name_process(name)
    _report(link, lambda: run_assistant(run, rank, _finder(link, endpoint, run), host=host), student=name)


def _finder(link: Connection, endpoint: Endpoint, run: Run) -> Find:
    """Finds the first endpoint, or the one after a lost coordinator's."""
    limit_s = run.recipe.limits.startup_s
    return lambda lost: endpoint if lost is None else _await_next(link, lost, limit_s)


def _name_process(name: str) -> None:
    """Show this process as `kdcl:NAME` in `top` and `ps -o comm`, where all forked processes look alike."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_NAME, f"kdcl:{name}".encode()[:15], 0, 0, 0)


def _await_next(link: Connection, lost: Endpoint, limit_s: float) -> Endpoint:
    """The endpoint of the coordinator that follows a lost one."""
    link.send(CoordinatorUnreachable(lost.id))
    deadline = time.monotonic() + limit_s
    while link.poll(max(0.0, deadline - time.monotonic())):
        found: Endpoint = link.recv()
        if found.id != lost.id:
            return found
    raise CoordinatorLost(f"no other coordinator has started within {limit_s:g} s (limits.startup_s)")


def _report(link: Connection, work: Callable[[], bool], student: str | None) -> None:
    """Do a process's work and report to the launcher how it ended."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the launcher decides
    end_with_parent(waking=True)
    gc.freeze()  # a collection would write to every imported object, and so copy the server's pages
    try:
        link.send(Finished(work()))
    except RunFailed as end:
        link.send(RunEndedByFailure(end.cause))
    except Exception as error:
        link.send(Failed(wrap(error, student=student, step=None, phase="start")))

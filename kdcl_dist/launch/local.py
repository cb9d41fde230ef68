"""All processes of a run on this machine, without Ray: to debug, and where Ray is not wanted."""

from __future__ import annotations

import multiprocessing as mp
import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing import forkserver
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

import torch

from kdcl_dist.board import COORDINATOR
from kdcl_dist.coordinator_loop import run_coordinator
from kdcl_dist.errors import (
    CoordinatorLost,
    KdclError,
    RecipeError,
    StartupTimeout,
    StudentLost,
    from_dict,
    wrap,
)
from kdcl_dist.events import Event
from kdcl_dist.exchange import Endpoint, host_store
from kdcl_dist.launch.devices import assign_devices
from kdcl_dist.orphans import end_with_parent
from kdcl_dist.preflight import Check, check_here
from kdcl_dist.recipe import Recipe
from kdcl_dist.runs import Run
from kdcl_dist.storage import Folder
from kdcl_dist.student_loop import run_student

__all__ = ["check", "launch"]

HOST = "127.0.0.1"
#: Seconds that the others have to notice a failure by themselves before they are ended.
GRACE_S = 15.0


@dataclass
class _Member:
    """One process of the cast, as the launcher sees it."""

    name: str
    process: BaseProcess
    inbox: Connection
    finished: bool | None = None
    error: KdclError | None = None
    ended: bool = field(default=False)


def launch(run: Run, tell: Callable[[Event], None], asked: threading.Event) -> bool:
    """Train a run in processes of this machine.

    Args:
        run: the run.
        tell: hears what happens.
        asked: set to ask for a checkpoint and an end after the current step.

    Returns:
        True at the end of the run, False when it was stopped before, after a checkpoint.

    Raises:
        KdclError: the first failure of the run.
    """
    devices = assign_devices(run.recipe, torch.cuda.device_count())
    context = _context()
    stop = context.Event()
    coordinator = _start(context, COORDINATOR, _coordinate, run, stop)
    cast = [coordinator]
    try:
        endpoint = _await_endpoint(coordinator, run.recipe.limits.startup_s)
        for rank, (member, device) in enumerate(zip(run.recipe.members, devices, strict=True)):
            cast.append(_start(context, member.name, _train, run, rank, endpoint, device))
        _attend(cast, tell, asked, stop)
    finally:
        _end(cast)
    if (cause := _first_cause(cast)) is not None:
        raise cause
    return bool(coordinator.finished)


def _context() -> Any:
    """A server that has imported everything, from which the cast's processes are forked at once."""
    # A store whose peer has died logs a C++ stack for each of its connections; the cause is told by us.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    context = mp.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    # Ctrl-C reaches the whole foreground group: the server must not die of it while it imports.
    old = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, old)
    return context


def check(recipe: Recipe, storage: Folder) -> list[Check]:
    """All checks of `kdcl preflight` for training in processes of this machine."""
    count = torch.cuda.device_count()
    figure, failures = f"{len(recipe.members)} workers on this machine, GPU {count}", []
    try:
        assign_devices(recipe, count)
    except RecipeError as error:
        failures = [str(error)]
    return [Check("placement", figure, failures), *check_here(recipe, storage, HOST, {})]


def _start(context: Any, name: str, target: Callable[..., None], *arguments: Any) -> _Member:
    inbox, outbox = context.Pipe(duplex=False)
    process = context.Process(target=target, args=(outbox, *arguments), name=f"kdcl-{name}")
    process.start()
    outbox.close()
    return _Member(name, process, inbox)


def _await_endpoint(coordinator: _Member, limit_s: float) -> Endpoint:
    if not coordinator.inbox.poll(limit_s):
        raise StartupTimeout(f"the coordinator did not start within {limit_s:g} s (limits.startup_s)")
    try:
        kind, value = coordinator.inbox.recv()
    except EOFError:
        coordinator.process.join(GRACE_S)
        raise CoordinatorLost(f"the coordinator died at its start ({_how(coordinator)})") from None
    if kind == "failed":
        raise from_dict(value)
    assert isinstance(value, Endpoint)
    return value


def _attend(cast: list[_Member], tell: Callable[[Event], None], asked: threading.Event, stop: Any) -> None:
    """Pass on what the processes say until all have ended, or a failure had time to reach all."""
    failed_at: float | None = None
    while open_inboxes := {member.inbox: member for member in cast if not member.ended}:
        if asked.is_set():
            stop.set()
        for inbox in wait(list(open_inboxes), timeout=0.2):
            _hear(open_inboxes[inbox], tell)  # type: ignore[index]
        failed = any(member.error or (member.ended and member.finished is None) for member in cast)
        failed_at = failed_at or (time.monotonic() if failed else None)
        if failed_at is not None and time.monotonic() - failed_at > GRACE_S:
            return


def _hear(member: _Member, tell: Callable[[Event], None]) -> None:
    try:
        kind, value = member.inbox.recv()
    except (EOFError, ConnectionResetError):
        member.ended = True
        return
    if kind == "event":
        tell(value)
    elif kind == "finished":
        member.finished = value
    elif kind == "failed":
        member.error = from_dict(value)


def _end(cast: list[_Member]) -> None:
    """Wait for processes that are about to end by themselves, and end the others."""
    for member in reversed(cast):  # the coordinator, which hosts the store, goes last
        done = member.ended or member.error is not None or member.finished is not None
        member.process.join(GRACE_S if done else 0)
        if member.process.is_alive():
            member.process.terminate()
            member.process.join(2)
        if member.process.is_alive():
            member.process.kill()
            member.process.join()
        member.inbox.close()


def _first_cause(cast: list[_Member]) -> KdclError | None:
    """A process that died without a word is the cause; else what was reported first of all."""
    for member in cast:
        if member.ended and member.finished is None and member.error is None:
            reported = next((m.error for m in cast if m.error and m.error.student == member.name), None)
            kind = CoordinatorLost if member.name == COORDINATOR else StudentLost
            error = kind(f"the process of {member.name} died ({_how(member)})", host=HOST)
            if member.name != COORDINATOR:
                error.at(student=member.name)
            return error.at(step=reported.step, phase=reported.phase) if reported else error
    return next((member.error for member in cast if member.error), None)


def _how(member: _Member) -> str:
    code = member.process.exitcode
    if code is not None and code < 0:
        name = signal.Signals(-code).name
        hint = "; out of memory, or killed by hand" if name == "SIGKILL" else ""
        return f"killed by {name}{hint}"
    return f"exit code {code}"


# -- in the processes ----------------------------------------------------------------------------


def _coordinate(outbox: Connection, run: Run, stop: Any) -> None:
    def work() -> bool:
        store, endpoint = host_store(HOST)
        outbox.send(("endpoint", endpoint))
        return run_coordinator(
            run, store, host=HOST, stop=stop.is_set, tell=lambda event: outbox.send(("event", event))
        )

    _report(outbox, work, student=None)


def _train(outbox: Connection, run: Run, rank: int, endpoint: Endpoint, device: str) -> None:
    asked = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: asked.set())

    def work() -> bool:
        return run_student(run, rank, endpoint, host=HOST, device=torch.device(device), stop=asked.is_set)

    _report(outbox, work, student=run.recipe.members[rank].name)


def _report(outbox: Connection, work: Callable[[], bool], student: str | None) -> None:
    """Run a process's work and tell the launcher how it ended."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the launcher decides
    end_with_parent()
    try:
        outbox.send(("finished", work()))
    except Exception as error:
        outbox.send(("failed", wrap(error, student=student, step=None, phase="start").to_dict()))

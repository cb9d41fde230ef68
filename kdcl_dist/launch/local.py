"""All processes of a run on this machine, without Ray: to debug, and where Ray is not wanted."""

from __future__ import annotations

import contextlib
import multiprocessing as mp
import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
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
    UserError,
    from_dict,
    wrap,
)
from kdcl_dist.events import Event, Note
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
    start: Callable[[], tuple[BaseProcess, Connection]]
    process: BaseProcess = field(init=False)
    link: Connection = field(init=False)
    finished: bool | None = None
    error: KdclError | None = None
    ended: bool = False

    def __post_init__(self) -> None:
        self.process, self.link = self.start()

    @property
    def failed(self) -> bool:
        """Whether the process ended, or is about to, without having finished."""
        return self.error is not None or (self.ended and self.finished is None)

    def replace(self) -> None:
        """Start a new process in the place of one that failed."""
        _finish(self)
        self.process, self.link = self.start()
        self.finished, self.error, self.ended = None, None, False


def launch(run: Run, tell: Callable[[Event], None], asked: threading.Event) -> bool:
    """Train a run in processes of this machine.

    Args:
        run: the run.
        tell: hears what happens.
        asked: set to ask for a checkpoint and an end after the current step.

    Returns:
        True at the end of the run, False when it was stopped before, after a checkpoint.

    Raises:
        KdclError: the failure that ended the run.
    """
    return _Cast(run, tell, asked).train()


class _Cast:
    """All processes of a run; a process that dies is replaced while the run's failures allow it."""

    def __init__(self, run: Run, tell: Callable[[Event], None], asked: threading.Event) -> None:
        self.run, self.tell, self.asked = run, tell, asked
        self.devices = assign_devices(run.recipe, torch.cuda.device_count())
        self.context = _context()
        self.stop = self.context.Event()
        self.endpoint: Endpoint | None = None
        self.replaced = 0
        self.failed_at: float | None = None
        self.coordinator = _Member(COORDINATOR, lambda: self._start(COORDINATOR, _coordinate, run, self.stop))
        self.students: list[_Member] = []

    @property
    def members(self) -> list[_Member]:
        """The coordinator, if it is there, and the students."""
        return [self.coordinator, *self.students]

    def train(self) -> bool:
        """See `launch`."""
        try:
            self.endpoint = _await_endpoint(self.coordinator, self.run.recipe.limits.startup_s)
            for rank, member in enumerate(self.run.recipe.members):
                self.students.append(_Member(member.name, partial(self._start_student, rank)))
            self._attend()
        finally:
            _end(self.members)
        if (cause := _first_cause(self.members)) is not None:
            raise cause
        return bool(self.coordinator.finished)

    def _start(
        self, name: str, target: Callable[..., None], *arguments: Any
    ) -> tuple[BaseProcess, Connection]:
        ours, theirs = self.context.Pipe()
        process = self.context.Process(target=target, args=(theirs, *arguments), name=f"kdcl-{name}")
        process.start()
        theirs.close()
        return process, ours

    def _start_student(self, rank: int) -> tuple[BaseProcess, Connection]:
        name, device = self.run.recipe.members[rank].name, self.devices[rank]
        return self._start(name, _train, self.run, rank, self.endpoint, device)

    def _attend(self) -> None:
        """Pass on what the processes say until all have ended, or a failure had time to reach all."""
        while open_links := {member.link: member for member in self.members if not member.ended}:
            if self.asked.is_set():
                self.stop.set()
            for link in wait(list(open_links), timeout=0.2):
                self._hear(open_links[link])  # type: ignore[index]
            self._mend()
            failed = any(member.failed for member in self.members)
            self.failed_at = (self.failed_at or time.monotonic()) if failed else None
            if self.failed_at is not None and time.monotonic() - self.failed_at > GRACE_S:
                return

    def _hear(self, member: _Member) -> None:
        try:
            kind, value = member.link.recv()
        except (EOFError, ConnectionResetError):
            member.ended = True
            return
        if kind == "event":
            self.tell(value)
        elif kind == "finished":
            member.finished = value
        elif kind == "failed":
            member.error = from_dict(value)
        elif kind == "endpoint":
            self._announce(value)
        elif kind == "evict":
            for student in self.students:
                if (student.name, student.process.pid) == value:
                    student.process.kill()
        elif kind == "lost" and self.endpoint is not None and self.endpoint.id == value:
            self.coordinator.process.kill()

    def _mend(self) -> None:
        """Replace processes that failed: the coordinator first, since the students need its store."""
        if self.coordinator.error is not None or any(m.finished is not None for m in self.members):
            return  # the coordinator has decided that the run ends
        for member in self.members:
            if not member.failed or (self.endpoint is None and member is not self.coordinator):
                continue
            if self.replaced >= self.run.recipe.failure.allowed or isinstance(member.error, UserError):
                return
            self.replaced += 1
            if member is self.coordinator:
                self.endpoint = None
            member.process.join(GRACE_S)
            self.tell(
                Note(f"{member.name}: process {member.process.pid} failed ({_how(member)}); a new one starts")
            )
            member.replace()

    def _announce(self, endpoint: Endpoint) -> None:
        """Tell the students where a coordinator's store is that took another's place."""
        self.endpoint = endpoint
        for student in self.students:
            with contextlib.suppress(OSError):  # one that died is replaced, and told then
                student.link.send(endpoint)


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


def _await_endpoint(coordinator: _Member, limit_s: float) -> Endpoint:
    if not coordinator.link.poll(limit_s):
        raise StartupTimeout(f"the coordinator did not start within {limit_s:g} s (limits.startup_s)")
    try:
        kind, value = coordinator.link.recv()
    except EOFError:
        coordinator.process.join(GRACE_S)
        raise CoordinatorLost(f"the coordinator died at its start ({_how(coordinator)})") from None
    if kind == "failed":
        raise from_dict(value)
    assert isinstance(value, Endpoint)
    return value


def _end(cast: list[_Member]) -> None:
    """Wait for processes that are about to end by themselves, and end the others."""
    for member in reversed(cast):  # the coordinator, which hosts the store, goes last
        _finish(member)


def _finish(member: _Member) -> None:
    done = member.ended or member.error is not None or member.finished is not None
    member.process.join(GRACE_S if done else 0)
    if member.process.is_alive():
        member.process.terminate()
        member.process.join(2)
    if member.process.is_alive():
        member.process.kill()
        member.process.join()
    member.link.close()


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


def _coordinate(link: Connection, run: Run, stop: Any) -> None:
    def work() -> bool:
        store, endpoint = host_store(HOST)
        link.send(("endpoint", endpoint))
        return run_coordinator(
            run,
            store,
            host=HOST,
            stop=stop.is_set,
            tell=lambda event: link.send(("event", event)),
            evict=lambda name, pid: link.send(("evict", (name, pid))),
        )

    _report(link, work, student=None)


def _train(link: Connection, run: Run, rank: int, endpoint: Endpoint, device: str) -> None:
    asked = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: asked.set())

    def find(lost: Endpoint | None) -> Endpoint:
        return endpoint if lost is None else _await_next(link, lost, run.recipe.limits.startup_s)

    def work() -> bool:
        return run_student(run, rank, find, host=HOST, device=torch.device(device), stop=asked.is_set)

    _report(link, work, student=run.recipe.members[rank].name)


def _await_next(link: Connection, lost: Endpoint, limit_s: float) -> Endpoint:
    """The store of the coordinator that follows after a lost one."""
    link.send(("lost", lost.id))
    deadline = time.monotonic() + limit_s
    while link.poll(max(0.0, deadline - time.monotonic())):
        found: Endpoint = link.recv()
        if found.id != lost.id:
            return found
    raise CoordinatorLost(f"no other coordinator has started within {limit_s:g} s (limits.startup_s)")


def _report(link: Connection, work: Callable[[], bool], student: str | None) -> None:
    """Run a process's work and tell the launcher how it ended."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the launcher decides
    end_with_parent()
    try:
        link.send(("finished", work()))
    except Exception as error:
        link.send(("failed", wrap(error, student=student, step=None, phase="start").to_dict()))

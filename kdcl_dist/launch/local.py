"""All processes of a run on this machine, without Ray: to debug, and where Ray is not wanted."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

import torch

from kdcl_dist.board import COORDINATOR
from kdcl_dist.chair import run_coordinator
from kdcl_dist.errors import (
    CoordinatorLost,
    KdclError,
    RecipeError,
    StartupTimeout,
    StudentLost,
    from_dict,
    wrap,
)
from kdcl_dist.events import Event, Note
from kdcl_dist.exchange import Endpoint, host_store
from kdcl_dist.launch.devices import assign_devices
from kdcl_dist.launch.server import start_server
from kdcl_dist.meeting import RunOver
from kdcl_dist.orphans import end_with_parent
from kdcl_dist.preflight import Check, check_here
from kdcl_dist.recipe import Recipe
from kdcl_dist.recovery import gives_up
from kdcl_dist.runs import Run
from kdcl_dist.seat import run_student
from kdcl_dist.storage import Folder

__all__ = ["check", "launch"]

HOST = "127.0.0.1"
#: Seconds that the others have to notice a failure by themselves before they are ended.
GRACE_S = 15.0


@dataclass
class _Member:
    """One process of the cast, as the launcher sees it."""

    name: str
    process: BaseProcess
    link: Connection
    finished: bool | None = None
    error: KdclError | None = None
    ended: bool = False

    @property
    def failed(self) -> bool:
        """Whether the process ended, or is about to, without having finished."""
        return self.error is not None or (self.ended and self.finished is None)


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
    """All processes of a run, the coordinator's first; one that dies is replaced while the run goes on."""

    def __init__(self, run: Run, tell: Callable[[Event], None], asked: threading.Event) -> None:
        self.run, self.tell, self.asked = run, tell, asked
        self.devices = assign_devices(run.recipe, torch.cuda.device_count())
        self.context = start_server()
        self.stop = self.context.Event()
        self.endpoint: Endpoint | None = None
        self.members: list[_Member] = []
        self.replaced = 0
        self.over = False

    def train(self) -> bool:
        """See `launch`."""
        try:
            self.members.append(self._start_coordinator())
            self.endpoint = _await_endpoint(self.members[0], self.run.recipe.limits.startup_s)
            for rank in range(len(self.run.recipe.members)):
                self.members.append(self._start_student(rank))
            self._attend()
        finally:
            _end(self.members)
        if (cause := _first_cause(self.members)) is not None:
            raise cause
        return bool(self.members[0].finished)

    def _start_coordinator(self) -> _Member:
        return self._start(COORDINATOR, _coordinate, self.run, self.stop)

    def _start_student(self, rank: int) -> _Member:
        name, device = self.run.recipe.members[rank].name, self.devices[rank]
        return self._start(name, _train, self.run, rank, self.endpoint, device)

    def _start(self, name: str, target: Callable[..., None], *arguments: Any) -> _Member:
        ours, theirs = self.context.Pipe()
        process = self.context.Process(target=target, args=(theirs, *arguments), name=f"kdcl-{name}")
        process.start()
        theirs.close()
        return _Member(name, process, ours)

    def _attend(self) -> None:
        """Pass on what the processes say until all have ended, or an end had time to reach all."""
        over_at: float | None = None
        limits, stops = self.run.recipe.limits, self.run.recipe.failure.policy == "stop"
        grace_s = max(GRACE_S, limits.startup_s) if stops else GRACE_S  # the others take a checkpoint
        while talking := {member.link: member for member in self.members if not member.ended}:
            if self.asked.is_set():
                self.stop.set()
            for link in wait(list(talking), timeout=0.2):
                self._hear(talking[link])  # type: ignore[index]
            self._mend()
            over = any(member.failed for member in self.members) or self.members[0].finished is not None
            over_at = (over_at or time.monotonic()) if over else None
            if over_at is not None and time.monotonic() - over_at > grace_s:
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
            member.finished, self.over = value, True
        elif kind == "failed":
            member.error = from_dict(value)
            self.over |= member.name == COORDINATOR or gives_up(self.run.recipe.failure, [], member.error)
        elif kind == "over":  # what the coordinator tells, too, if it lives
            member.error, self.over = from_dict(value), True
        elif kind == "endpoint":
            self._announce(value)
        elif kind == "end":
            self._kill(*value)
        elif kind == "lost" and self.members[0].finished is not None:  # it was away when the run ended
            member.finished = self.members[0].finished
            member.process.kill()
        elif kind == "lost" and self.endpoint is not None and self.endpoint.id == value:
            self.members[0].process.kill()

    def _mend(self) -> None:
        """Replace processes that failed: the coordinator first, since the students need its store."""
        for place, member in enumerate(self.members):
            if self.over or not member.failed or (place > 0 and self.endpoint is None):
                continue
            if self.replaced >= self.run.recipe.failure.allowed:
                self.over = True
                return
            self.replaced += 1
            _finish(member)
            why = member.error.message if member.error else _how(member)
            died = f"process {member.process.pid} failed ({why})"
            self.tell(Note(f"{member.name}: {died}; a new one takes its place"))
            if place == 0:
                self.endpoint = None
                self.members[0] = self._start_coordinator()
            else:
                self.members[place] = self._start_student(place - 1)

    def _kill(self, name: str, pid: int) -> None:
        for member in self.members:
            if (member.name, member.process.pid) == (name, pid):
                member.process.kill()

    def _announce(self, endpoint: Endpoint) -> None:
        """Tell the students where a coordinator's store is that took another's place."""
        self.endpoint = endpoint
        for student in self.members[1:]:
            with contextlib.suppress(OSError):  # one that died is replaced, and told then
                student.link.send(endpoint)


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
            processes=_Processes(link),
        )

    _report(link, work, student=None)


@dataclass(frozen=True)
class _Processes:
    """See `kdcl_dist.chair.Processes`."""

    link: Connection

    def is_gone(self, name: str, pid: int) -> bool:
        """Whether the process is dead."""
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        return False

    def end(self, name: str, pid: int) -> None:
        """Let the launcher end it."""
        self.link.send(("end", (name, pid)))

    def notice(self) -> str | None:
        """This machine gives none."""
        return None


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
    gc.freeze()  # a collection that passed over all that is imported would make its pages this process's own
    try:
        link.send(("finished", work()))
    except RunOver as over:
        link.send(("over", over.cause.to_dict()))
    except Exception as error:
        link.send(("failed", wrap(error, student=student, step=None, phase="start").to_dict()))

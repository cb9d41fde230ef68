"""All processes of a run on this machine, without Ray: to debug, and where Ray is not wanted."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import Counter
from collections.abc import Callable
from multiprocessing.connection import wait

import torch

from kdcl_dist.config.recipe import Recipe
from kdcl_dist.coordinator.recovery_policy import is_fatal
from kdcl_dist.errors import (
    CoordinatorCutOff,
    CoordinatorLost,
    KdclError,
    RecipeError,
    StartupTimeout,
    StudentLost,
    from_dict,
)
from kdcl_dist.launch.devices import assign_devices
from kdcl_dist.launch.forkserver import start_server
from kdcl_dist.launch.preflight.checks import Check, check_here
from kdcl_dist.launch.processes import GRACE_S, Process, finish, how_it_ended, start
from kdcl_dist.membership.endpoint import Endpoint
from kdcl_dist.membership.monitor import COORDINATOR
from kdcl_dist.run.events import Event, Note
from kdcl_dist.run.run import Run
from kdcl_dist.run.storage import Folder

__all__ = ["check", "launch"]

HOST = "127.0.0.1"


def launch(run: Run, on_event: Callable[[Event], None], asked: threading.Event) -> bool:
    """Train a run in processes of this machine.

    Args:
        run: the run.
        on_event: hears what happens.
        asked: set to ask for a checkpoint and an end after the current step.

    Returns:
        True at the end of the run, False when it was stopped before, after a checkpoint.

    Raises:
        KdclError: the failure that ended the run.
    """
    return _Cohort(run, on_event, asked).train()


class _Cohort:
    """All processes of a run, the coordinator's first; one that dies is replaced while the run goes on."""

    def __init__(self, run: Run, on_event: Callable[[Event], None], asked: threading.Event) -> None:
        self.run, self.on_event, self.asked = run, on_event, asked
        self.devices = assign_devices(run.recipe, torch.cuda.device_count())
        self.context = start_server()
        self.stop = self.context.Event()
        self.endpoint: Endpoint | None = None
        self.members: list[Process] = []
        self.replaced = Counter[int]()
        self.over = False

    def train(self) -> bool:
        """See `launch`."""
        try:
            self.members.append(self._start_coordinator())
            self.endpoint = _await_endpoint(self.members[0], self.run.recipe.limits.startup_s)
            for rank in range(len(self.run.recipe.workers)):
                self.members.append(self._start_student(rank))
            self._attend()
        finally:
            _end(self.members)
        finished = self.members[0].finished if self.members else None
        if finished is None and (cause := _first_cause(self.members)) is not None:
            raise cause
        return bool(finished)  # who dies after the last answer has lost nothing

    def _start_coordinator(self) -> Process:
        return start(self.context, COORDINATOR, "coordinate", self.run, HOST, self.stop)

    def _start_student(self, rank: int) -> Process:
        name, device = self.run.recipe.workers[rank].name, self.devices[rank]
        return start(self.context, name, "train", self.run, rank, self.endpoint, HOST, device)

    def _attend(self) -> None:
        """Pass on what the processes say until all have ended, or an end had time to reach all."""
        over_at: float | None = None
        limits, stops = self.run.recipe.limits, self.run.recipe.failure.policy == "stop"
        grace_s = max(GRACE_S, limits.startup_s) if stops else GRACE_S  # the others take a checkpoint
        while talking := [member for member in self.members if not member.ended]:
            if self.asked.is_set():
                self.stop.set()
            # A process of its own may hold the link of one that has died.
            signs = {sign: member for member in talking for sign in (member.link, member.process.sentinel)}
            spoke = {signs[sign].name: signs[sign] for sign in wait(list(signs), timeout=0.2)}  # type: ignore[index]
            for member in spoke.values():
                self._hear(member)
            self._mend()
            over = any(member.failed for member in self.members) or self.members[0].finished is not None
            over_at = (over_at or time.monotonic()) if over else None
            if over_at is not None and time.monotonic() - over_at > grace_s:
                return

    def _hear(self, member: Process) -> None:
        try:
            if not member.link.poll():
                raise EOFError
            kind, value = member.link.recv()
        except (EOFError, ConnectionResetError):
            member.ended = True
            return
        if kind == "event":
            self.on_event(value)
        elif kind == "finished":
            member.finished, self.over = value, True
        elif kind == "failed":
            member.error = from_dict(value)
            decided = member.name == COORDINATOR and not isinstance(member.error, CoordinatorCutOff)
            self.over |= decided or is_fatal(self.run.recipe.failure, [], member.error)
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
            self.members[0].why = "ended, since a student does not reach its store"
            self.members[0].process.kill()

    def _mend(self) -> None:
        """Replace processes that failed: the coordinator first, since the students need its store."""
        for place, member in enumerate(self.members):
            if self.over or not member.failed or (place > 0 and self.endpoint is None):
                continue
            if self.replaced[place] >= self.run.recipe.failure.allowed:
                self.over = True
                return
            self.replaced[place] += 1
            finish(member)
            why = member.error.message if member.error else how_it_ended(member)
            died = f"process {member.process.pid} failed ({why})"
            self.on_event(Note(f"{member.name}: {died}; a new one takes its place"))
            if place == 0:
                self.endpoint = None
                self.members[0] = self._start_coordinator()
            else:
                self.members[place] = self._start_student(place - 1)

    def _kill(self, name: str, pid: int) -> None:
        for member in self.members:
            if (member.name, member.process.pid) == (name, pid):
                member.why = "ended, since it did not answer"
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
    figure, failures = f"{len(recipe.workers)} workers on this machine, GPU {count}", []
    if named := [student.name for student in recipe.students if student.accelerator is not None]:
        figure += f"; accelerator of {', '.join(named)} not looked for"
    try:
        assign_devices(recipe, count)
    except RecipeError as error:
        failures = [str(error)]
    return [Check("placement", figure, failures), *check_here(recipe, storage, HOST, {})]


def _await_endpoint(coordinator: Process, limit_s: float) -> Endpoint:
    if not coordinator.link.poll(limit_s):
        raise StartupTimeout(f"the coordinator did not start within {limit_s:g} s (limits.startup_s)")
    try:
        kind, value = coordinator.link.recv()
    except EOFError:
        coordinator.process.join(GRACE_S)
        raise CoordinatorLost(f"the coordinator died at its start ({how_it_ended(coordinator)})") from None
    if kind == "failed":
        raise from_dict(value)
    assert isinstance(value, Endpoint)
    return value


def _end(cohort: list[Process]) -> None:
    """Wait for processes that are about to end by themselves, and end the others."""
    for member in reversed(cohort):  # the coordinator, which hosts the store, goes last
        finish(member)


def _first_cause(cohort: list[Process]) -> KdclError | None:
    """A process that died without a word is the cause; else what was reported first of all."""
    for member in cohort:
        if member.ended and member.finished is None and member.error is None:
            reported = next((m.error for m in cohort if m.error and m.error.student == member.name), None)
            kind = CoordinatorLost if member.name == COORDINATOR else StudentLost
            error = kind(f"the process of {member.name} died ({how_it_ended(member)})", host=HOST)
            if member.name != COORDINATOR:
                error.at(student=member.name)
            return error.at(step=reported.step, phase=reported.phase) if reported else error
    return next((member.error for member in cohort if member.error), None)

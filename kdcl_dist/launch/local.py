"""All processes of a run on this machine, without Ray: to debug, and where Ray is not wanted."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

from kdcl_dist.config.recipe import Recipe
from kdcl_dist.coordinator.processes import SAVE_ASKED
from kdcl_dist.coordinator.recovery_policy import is_fatal
from kdcl_dist.errors import CoordinatorCutOff, RecipeError, StartupTimeout
from kdcl_dist.launch.devices import assign_devices, ignored_locally
from kdcl_dist.launch.failures import failure_of, first_cause
from kdcl_dist.launch.forkserver import start_server
from kdcl_dist.launch.gpu_remarks import remarks
from kdcl_dist.launch.messages import (
    CohortAsked,
    CoordinatorUnreachable,
    EndpointOpened,
    EndProcess,
    EventEmitted,
    Failed,
    Finished,
    Message,
    Noticed,
    RunEndedByFailure,
    StopAsked,
)
from kdcl_dist.launch.newcomers import LocalNewcomers
from kdcl_dist.launch.preflight.checks import Check, check_here
from kdcl_dist.launch.preflight.rehearsal import opens_data, rehearsal, rehearse
from kdcl_dist.launch.processes import (
    GRACE_S,
    Process,
    await_ready,
    finish,
    how_it_ended,
    receive,
    start,
)
from kdcl_dist.membership.endpoint import Endpoint
from kdcl_dist.membership.monitor import COORDINATOR
from kdcl_dist.run.events import Event, Note, Started
from kdcl_dist.run.process_log import ProcessLog, close_all
from kdcl_dist.run.record import recorded_end
from kdcl_dist.run.run import Run
from kdcl_dist.run.storage import Folder
from kdcl_dist.utils.devices import usable_gpus

__all__ = ["check", "launch"]

HOST = "127.0.0.1"
#: Seconds between two polls of a request to stop.
POLL_S = 0.2


def launch(
    run: Run,
    on_event: Callable[[Event], None],
    stop_requested: threading.Event,
    save_requested: threading.Event | None = None,
) -> bool:
    """Train a run in processes of this machine.

    Args:
        run: the run.
        on_event: called with each event of the run.
        stop_requested: set to ask for a checkpoint and an end after the current step.
        save_requested: set to ask for a checkpoint after the current step; cleared here.

    Returns:
        True at the end of the run, False when it was stopped before, after a checkpoint.

    Raises:
        KdclError: the failure that ended the run.
    """
    return _Cohort(run, on_event, stop_requested, save_requested).train()


class _Cohort:
    """All processes of a run; a process that dies is replaced while the run goes on.

    Attributes:
        run: with the recipe that it has now.
        processes: the coordinator's, then one for each member that has taken part.
        newcomers: processes of students that are to join.
        devices: of the workers, by name.
        logs: of all processes, by name.
        endpoint: of the coordinator's store; None while a coordinator starts.
        is_over: whether the run has ended, or is about to: then no process is replaced.
        coordinator_since: when the latest coordinator was started, by the monotonic clock.
        placed: the workers of the latest generation.
        gives_up: whether the run is asked to stop, since one that it needs later is not replaced.
        stops: whether the run is asked to stop, for whatever reason.
        told: the coordinator that was told to stop.
    """

    def __init__(
        self,
        run: Run,
        on_event: Callable[[Event], None],
        stop_requested: threading.Event,
        save_requested: threading.Event | None = None,
    ) -> None:
        self.run, self.on_event = run, on_event
        self.stop_requested, self.save_requested = stop_requested, save_requested or threading.Event()
        gpus = usable_gpus()
        devices = assign_devices(run.recipe, gpus)
        for remark in remarks(run.recipe, devices, gpus):
            on_event(remark)
        self.devices = dict(zip(run.recipe.members, devices, strict=False))  # assistants have none
        self.context, self.limit_s = start_server(for_run=True), run.recipe.limits.startup_s
        self.endpoint: Endpoint | None = None
        self.coordinator_since = 0.0
        self.processes: list[Process] = []
        self.newcomers = LocalNewcomers(run.folder, self._start_newcomer, on_event)
        self.logs: dict[str, ProcessLog] = {}
        self.replacements = Counter[str]()
        self.is_over = self.gives_up = self.stops = False
        self.told: Process | None = None
        self.placed: set[str] = set()

    def train(self) -> bool:
        """See `launch`."""
        try:
            self.processes.append(self._start_coordinator())
            self.endpoint = _await_endpoint(self.processes[0], self.limit_s)
            self._start_members()
            self._supervise()
        finally:
            self.newcomers.close()
            for process in reversed(self.processes):  # the coordinator, which hosts the store, ends last
                finish(process)
            close_all(self.logs.values())
        finished = self.processes[0].finished
        if finished is None and self.processes[0].error is None:  # it died, maybe after all was recorded
            finished = recorded_end(self.run)
        lacking = finished is None or (self.gives_up and not finished)
        if lacking and (cause := first_cause(self.processes, HOST)) is not None:
            raise cause
        return bool(finished)  # a student that dies after the coordinator's end loses nothing

    def _start_coordinator(self) -> Process:
        entry = "kdcl_dist.launch.entrypoints:coordinate"
        started = self._start(COORDINATOR, entry, self.run.for_coordinator(), HOST, False)
        self.coordinator_since = time.monotonic()
        return started

    def _start_members(self) -> None:
        """Start the members that have no process yet."""
        started = {process.name for process in self.processes}
        for name in (name for name in self.run.recipe.members if name not in started):
            self.processes.append(self._start_member(name, self.run))

    def _start_member(self, name: str, run: Run) -> Process:
        """Start a worker of a run, or an assistant of its coordinator."""
        entry, rank = "kdcl_dist.launch.entrypoints:", run.recipe.members.index(name)
        if name in run.recipe.assistants:
            return self._start(name, f"{entry}assist", run.for_coordinator(), rank, self.endpoint, HOST)
        return self._start(name, f"{entry}train", run, rank, self.endpoint, HOST, self.devices[name])

    def _start_newcomer(self, name: str, wanted: Recipe) -> Process:
        """Start a worker that is to join; raises `RecipeError` where this machine has no room for it."""
        devices = dict(zip(wanted.members, assign_devices(wanted, usable_gpus()), strict=False))
        kept = {*self.run.recipe.members, *self.newcomers.processes} & self.devices.keys()
        self.devices = devices | {name: self.devices[name] for name in kept}
        return self._start_member(name, replace(self.run, recipe=wanted))

    def _start(self, name: str, entry: str, *arguments: object) -> Process:
        if name not in self.logs:
            self.logs[name] = ProcessLog(self.run.folder, name)
        return start(self.context, name, entry, *arguments, limit_s=self.limit_s, log=self.logs[name])

    def _supervise(self) -> None:
        """Handle the processes' messages until all have ended, or for a while after the run's end."""
        over_at: float | None = None
        limits, stops = self.run.recipe.limits, self.run.recipe.failure.policy == "stop"
        grace_s = max(GRACE_S, limits.startup_s) if stops else GRACE_S  # the others take a checkpoint
        while not all(process.ended for process in self.processes):
            self._forward_requests()
            known = [*self.processes, *self.newcomers.processes.values()]
            for process in await_ready([each for each in known if not each.ended], POLL_S):
                if not process.link.closed:  # as it is once a message of another has ended the process
                    self._handle(process, receive(process))
            self._replace_failed()
            self._end_late_coordinator()
            over = self._has_failed() or self.processes[0].finished is not None
            over_at = (over_at or time.monotonic()) if over else None
            if self.is_over and not self.stops and self._fails_unnoticed():
                self.gives_up, grace_s = True, max(GRACE_S, limits.startup_s)
            if over_at is not None and time.monotonic() - over_at > grace_s:
                return

    def _forward_requests(self) -> None:
        """Tell the coordinator what is asked of the run; to stop, also each that replaces it."""
        coordinator = self.processes[0]
        self.stops |= self.gives_up or self.stop_requested.is_set()
        if self.stops and self.told is not coordinator:
            self.told = coordinator
            _tell(coordinator, StopAsked())
        if self.save_requested.is_set():
            self.save_requested.clear()
            _tell(coordinator, Noticed(SAVE_ASKED))

    def _handle(self, process: Process, message: Message | None) -> None:
        match message:
            case EventEmitted(event):
                if isinstance(event, Started):
                    self.placed = {*event.placement}
                self.on_event(event)
            case EndpointOpened(endpoint):
                self._set_endpoint(endpoint)
            case CohortAsked(recipe, wanted):
                self._admit(recipe, wanted)
            case EndProcess(name, pid):
                self._kill_silent(name, pid)
            case CoordinatorUnreachable(endpoint_id):
                self._handle_unreachable(process, endpoint_id)
            case _ if process.name not in self.newcomers.processes or not isinstance(message, Failed):
                self._note_end(process, message)

    def _note_end(self, process: Process, message: Message | None) -> None:
        """Note what the end of a member's process says of the run's."""
        match message:
            case Failed(error):
                decided = process.name == COORDINATOR and not isinstance(error, CoordinatorCutOff)
                self.is_over |= decided or is_fatal(self.run.recipe.failure, [], error)
            case Finished() | RunEndedByFailure():  # the coordinator, if it lives, reports the same
                self.is_over |= not self._leaves_early(process)

    def _admit(self, recipe: Recipe, wanted: Recipe) -> None:
        """Take over the recipe that the run has now, and have processes for those who are to join."""
        self.run = replace(self.run, recipe=recipe)
        self.processes += self.newcomers.take(recipe)
        self._start_members()
        self.newcomers.admit(recipe, wanted)

    def _leaves_early(self, process: Process) -> bool:
        """Whether a process is of a student that leaves before the run's end."""
        recipe = self.run.recipe
        students = {worker.name: recipe.students[worker.student] for worker in recipe.workers}
        return process.name in students and students[process.name].has_left(recipe.epochs - 1)

    def _handle_unreachable(self, student: Process, endpoint_id: str) -> None:
        """Replace a coordinator that a student does not reach; the student may also have missed the end."""
        coordinator = self.processes[0]
        if coordinator.finished is not None:
            student.finished = coordinator.finished
            student.handle.kill()
        elif self.endpoint is not None and self.endpoint.id == endpoint_id:
            coordinator.end_reason = "ended, since a student does not reach its store"
            coordinator.handle.kill()

    def _replace_failed(self) -> None:
        """Replace processes that failed, the coordinator first: students need its store. Refuse newcomers."""
        if not self.is_over:
            self.newcomers.refuse_failed()
        for index, process in enumerate(self.processes):
            if self.is_over or not process.failed or (index > 0 and self.endpoint is None):
                continue
            if self.replacements[process.name] >= self.run.recipe.failure.allowed:
                self.is_over = True
                return
            self.replacements[process.name] += 1
            finish(process)
            why = process.error.message if process.error else how_it_ended(process)
            what = f"process {process.handle.pid} failed ({why}); a new one takes its place"
            if index == 0:
                self.endpoint = None
                self.processes[0] = self._start_coordinator()
            else:
                self.processes[index] = self._start_member(process.name, self.run)
            self.on_event(Note(f"{process.name}: {what}"))  # only now: a held terminal holds up no recovery

    def _has_failed(self) -> bool:
        """Whether processes have failed that none replaces; a new coordinator must open its store before."""
        return (self.endpoint is not None or self.is_over) and any(each.failed for each in self.processes)

    def _end_late_coordinator(self) -> None:
        """End a coordinator that does not open its store, in time for the next one to find the students."""
        coordinator, since_s = self.processes[0], time.monotonic() - self.coordinator_since
        if self.endpoint is None and since_s > self.limit_s / 4 and not coordinator.ended:
            coordinator.end_reason = "ended, since it did not open its store"
            coordinator.handle.kill()

    def _fails_unnoticed(self) -> bool:
        """Whether none but students have failed without which the others train on, unaware of it."""
        failed = {process.name for process in self.processes if process.failed}
        members = {COORDINATOR, *self.run.recipe.assistants, *self.placed}
        trains = bool(self.placed and failed) and self.processes[0].finished is None
        return trains and failed.isdisjoint(members)

    def _kill_silent(self, name: str, pid: int | None) -> None:
        for process in self.processes:
            if process.name == name and pid in (process.handle.pid, None):
                process.end_reason = "ended, since it did not answer"
                process.handle.kill()

    def _set_endpoint(self, endpoint: Endpoint) -> None:
        """Send the students the endpoint of a coordinator that replaces another."""
        self.endpoint = endpoint
        for student in (*self.processes[1:], *self.newcomers.processes.values()):
            _tell(student, endpoint)  # a dead student is replaced, with the new endpoint


def _tell(process: Process, message: object) -> None:
    """Send a message to a process, which may have died."""
    with contextlib.suppress(OSError):
        process.link.send(message)


def check(recipe: Recipe, storage: Folder) -> list[Check]:
    """All checks of `kdcl preflight`, rehearsals included, for training in processes of this machine.

    Args:
        recipe: the run.
        storage: the folder that will hold it.
    """
    count = usable_gpus()
    gpus = f"{count} GPU{'s' * (count > 1)}" if count else "no GPU"
    figure = f"{len(recipe.workers)} workers on this machine, {gpus}"
    placement = Check("placement", figure, warnings=ignored_locally(recipe))
    devices: list[str] = []
    try:
        devices = assign_devices(recipe, count)
    except RecipeError as error:
        placement.failures.append(str(error))
    checks = check_here(recipe, storage, HOST, {}, apart=True)
    workers = zip(recipe.workers, devices, strict=False) if opens_data(checks) else ()
    found = [
        rehearse(recipe, worker.student, device, HOST) for worker, device in workers if worker.replica == 0
    ]
    return [placement, *checks, rehearsal(found)]


def _await_endpoint(coordinator: Process, limit_s: float) -> Endpoint:
    if not coordinator.link.poll(limit_s):
        raise StartupTimeout(f"the coordinator did not start within {limit_s:g} s (limits.startup_s)")
    match receive(coordinator):
        case EndpointOpened(endpoint):
            return endpoint
        case Failed(error):
            raise error
        case _:
            coordinator.handle.join(GRACE_S)
            raise failure_of(coordinator)

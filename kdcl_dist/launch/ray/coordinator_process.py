"""The coordinator's process, which the actor of the coordinator starts, and replaces when it dies.

Like a student's it is forked from a server that has its imports done: the next one is there in a fraction of
a second, where a new actor of Ray would import for seconds.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable

import ray

from kdcl_dist.errors import CoordinatorCutOff
from kdcl_dist.launch.failures import failure_of
from kdcl_dist.launch.forkserver import FOR_COORDINATORS, start_server
from kdcl_dist.launch.messages import (
    CohortAsked,
    EndpointOpened,
    EndProcess,
    EventEmitted,
    Failed,
    Finished,
    Message,
    Noticed,
    Question,
    Reply,
    StopAsked,
)
from kdcl_dist.launch.processes import Process, await_ready, finish, receive, start
from kdcl_dist.launch.ray.processes import RayProcesses
from kdcl_dist.membership.endpoint import Endpoint
from kdcl_dist.membership.monitor import COORDINATOR
from kdcl_dist.run.events import CheckpointSaved, Event
from kdcl_dist.run.process_log import ProcessLog
from kdcl_dist.run.record import recorded_end
from kdcl_dist.run.run import Run

__all__ = ["CoordinatorProcess"]

#: What the process runs.
ENTRY = "kdcl_dist.launch.entrypoints:coordinate"
#: The part of `limits.startup_s` within which a process opens its store: one in so many.
OPEN_SHARE = 4
#: Seconds between two looks at a process that opens no store.
LOOK_S = 1.0


class CoordinatorProcess:
    """Supervises the process from one thread; other threads ask for its store, and pass requests on.

    Args:
        run: the run.
        processes: of the cohort.
        emit: called with each event of the run, and where its cohort is asked to change.

    Attributes:
        endpoint: of the store; None while there is no process, or it starts.
        stops: whether the run is asked to stop.
        is_over: whether no process is replaced any more.
    """

    def __init__(
        self, run: Run, processes: RayProcesses, emit: Callable[[Event | CohortAsked], None]
    ) -> None:
        self.run, self.processes, self.emit = run, processes, emit
        self.host = ray.util.get_node_ip_address()
        self.context, self.limit_s = start_server(FOR_COORDINATORS), run.recipe.limits.startup_s
        self.process: Process | None = None
        self.endpoint: Endpoint | None = None
        self.stops = self.is_over = False
        self._notices = dict[str, Noticed]()  # that no checkpoint has met, for the next process too
        self._changed = threading.Condition()

    def supervise(self) -> bool:
        """Keep a process at work to the run's end; True at the end, False where the run was stopped before.

        Raises:
            KdclError: the failure that ended the run.
        """
        log = ProcessLog(self.run.folder, COORDINATOR)
        try:
            for _ in range(1 + self.run.recipe.failure.allowed):
                process = self._start(log)
                try:
                    if (finished := self._follow(process)) is not None:
                        return finished
                finally:
                    self._forget()
                    finish(process)
            if (end := recorded_end(self.run)) is not None:  # it died after that
                return end
            raise failure_of(process, self.host)
        finally:
            with self._changed:
                self.is_over = True
                self._changed.notify_all()
            log.close()

    def _start(self, log: ProcessLog) -> Process:
        arguments, limit_s = (self.run, self.host, True), self.limit_s
        process = start(self.context, COORDINATOR, ENTRY, *arguments, limit_s=limit_s, log=log)
        with self._changed:
            self.process = process
            if self.stops:
                _tell(process, StopAsked())
            for notice in self._notices.values():
                _tell(process, notice)
        return process

    def _forget(self) -> None:
        with self._changed:
            self.process = self.endpoint = None

    def _follow(self, process: Process) -> bool | None:
        """Handle a process's messages to its end: how the run has ended; None if it has to be replaced.

        Without a limit once its store is open: the members then notice when it hangs.
        """
        opens_by = time.monotonic() + self.limit_s / OPEN_SHARE
        while True:
            if not await_ready([process], LOOK_S):
                if self.endpoint is None and time.monotonic() > opens_by:
                    process.end_reason = "ended, since it did not open its store"
                    return None
                continue
            match message := receive(process):
                case Finished(at_end):
                    return at_end
                case Failed(error) if not isinstance(error, CoordinatorCutOff):
                    raise error
                case Failed() | None:
                    return None
                case _:
                    self._handle(process, message)

    def _handle(self, process: Process, message: Message) -> None:
        match message:
            case EventEmitted(event):
                if isinstance(event, CheckpointSaved):
                    with self._changed:
                        self._notices.clear()
                self.emit(event)
            case CohortAsked():
                self.emit(message)
            case EndpointOpened(endpoint):
                with self._changed:
                    self.endpoint = endpoint
                    self._changed.notify_all()
            case EndProcess(name, pid):  # in a thread: a worker that does not answer takes seconds
                threading.Thread(target=self.processes.end, args=(name, pid), daemon=True).start()
            case Question(number, method, arguments):
                answer = getattr(self.processes, method)(*arguments)
                with self._changed:
                    _tell(process, Reply(number, answer))

    # -- from other threads -------------------------------------------------------------------------

    def find(self, lost: str | None, limit_s: float) -> Endpoint | None:
        """Where the store listens, once it does; None where none does within `limit_s`, or the run is over.

        Args:
            lost: the id of an endpoint that a member has lost: its process is ended.
            limit_s: seconds to wait.
        """
        with self._changed:
            if self.process is not None and self.endpoint is not None and self.endpoint.id == lost:
                self.endpoint = None
                self.process.end_reason = "ended, since a student does not reach its store"
                self.process.handle.kill()
            self._changed.wait_for(lambda: self.endpoint is not None or self.is_over, limit_s)
            return self.endpoint

    def stop(self) -> None:
        """Ask for a checkpoint and an end after the current step."""
        with self._changed:
            if not self.stops and self.process is not None:
                _tell(self.process, StopAsked())
            self.stops = True

    def notice(self, text: str) -> None:
        """Ask for a checkpoint after the current step, for a reason."""
        with self._changed:
            self._notices[text] = Noticed(text)
            if self.process is not None:
                _tell(self.process, Noticed(text))


def _tell(process: Process, message: Reply | StopAsked | Noticed) -> None:
    """Send a message, one thread at a time, to a process that may have died."""
    with contextlib.suppress(OSError):
        process.link.send(message)

"""The coordinator as an actor.

The actor starts without Ray Train, whose import takes seconds and comes later, with the workers' handles. The
actor's callers import this module for its methods, so the actor itself imports what the methods need.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from kdcl_dist.coordinator.processes import SAVE_ASKED
from kdcl_dist.errors import CoordinatorCutOff, StartupTimeout, wrap
from kdcl_dist.launch.ray.common import END_S, actor_name, at_this_host, end_process, ping
from kdcl_dist.launch.ray.coordinator_output import own_files
from kdcl_dist.launch.ray.private import draining_nodes, set_title
from kdcl_dist.membership.endpoint import Endpoint
from kdcl_dist.run.events import Event
from kdcl_dist.run.run import Run

__all__ = ["EventCursor", "Progress", "start_coordinator"]

#: Seconds between two polls of the draining nodes.
DRAIN_POLL_S = 2.0
#: Seconds within which a worker ends the process that it has started.
KILL_S = 5.0


def start_coordinator(run: Run) -> Any:
    """Start the coordinator's actor on this node; it imports what it needs, and waits for `begin`."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    return CoordinatorActor.options(  # type: ignore[attr-defined]
        name=actor_name(run),
        num_cpus=0,
        max_concurrency=8 + len(run.recipe.members),
        max_restarts=run.recipe.failure.allowed,
        scheduling_strategy=here,
    ).remote(run.for_coordinator())


@dataclass(frozen=True)
class EventCursor:
    """How many events of one coordinator the driver has received.

    Attributes:
        coordinator: the id of the coordinator's endpoint; the next coordinator counts from 0.
        count: events.
    """

    coordinator: str = ""
    count: int = 0


@dataclass(frozen=True)
class Progress:
    """How far a run is.

    Attributes:
        kinds: the kinds whose workers are there.
        has_begun: whether the coordination has begun, since the workers of all kinds are there.
        is_over: whether the run has ended.
    """

    kinds: frozenset[int] = frozenset()
    has_begun: bool = False
    is_over: bool = False


@dataclass(frozen=True)
class _Registered:
    """A process that trains (0: none at present), and the actor of the worker that started it."""

    pid: int
    worker: Any


class _Processes:
    """See `kdcl_dist.coordinator.processes.Processes`.

    Attributes:
        registered: the process and worker of each student or replica, by its name.
        names: for the id of each of the cohort's nodes, the name of a process there.
        pings: the unanswered pings, by the id of the process whose worker was asked.
        draining: ids of all nodes that drain at present.
        announced: ids of the nodes whose notice was given.
        save_requested: whether the driver asks for a checkpoint.
    """

    def __init__(self) -> None:
        self.registered: dict[str, _Registered] = {}
        self.names = {ray.get_runtime_context().get_node_id(): "the coordinator"}
        self.pings: dict[int, Any] = {}
        self.draining: set[str] = set()
        self.announced: set[str] = set()
        self.save_requested = False

    def is_gone(self, name: str, pid: int) -> bool:
        """Whether the process is known to be dead: its worker says so, or is dead itself.

        A ping of a dead worker fails; a ping of a live one waits or succeeds.
        """
        known = self.registered.get(name)
        if known is None or known.pid != pid:
            return known is not None
        if pid not in self.pings:
            self.pings[pid] = known.worker.__ray_call__.remote(ping)
        if not ray.wait([self.pings[pid]], timeout=0)[0]:
            return False
        try:
            ray.get(self.pings.pop(pid))
        except RayError:
            return True
        return False

    def has(self, name: str) -> bool:
        """Whether a worker of Ray was there for a student or replica, and had started its process."""
        return name in self.registered

    def end(self, name: str, pid: int | None) -> None:
        """Let the worker end its process; a worker that does not answer is ended itself."""
        known = self.registered.get(name)
        if known is None or pid not in (known.pid, None):  # the process is replaced already
            return
        answer = known.worker.__ray_call__.remote(end_process, known.pid)
        if not ray.wait([answer], timeout=KILL_S)[0]:
            ray.kill(known.worker)

    def notice(self) -> str | None:
        """Once for each draining host: a line that names its worker; or the driver's request."""
        if self.save_requested:
            self.save_requested = False
            return SAVE_ASKED
        new = self.draining & set(self.names) - self.announced
        self.announced |= new
        return f"the host of {', '.join(self.names[node] for node in sorted(new))} is to go" if new else None

    def watch_draining(self) -> None:
        """Poll the draining nodes for ever; in a thread, since Ray's answer may take any time."""
        while True:
            with contextlib.suppress(RayError, RuntimeError):
                found = draining_nodes()
                if found is None:
                    return
                self.draining = found
            time.sleep(DRAIN_POLL_S)


@ray.remote
class CoordinatorActor:
    """The coordinator's process, which works in a thread and answers calls meanwhile.

    The process starts at the same time as the workers' and imports as long as they do. The coordination
    begins when the workers are there. Ray restarts the actor when it dies; the coordination then goes on at
    once, from the run's record.

    Attributes:
        assignment: for each kind of workers that is there, and each rank of its trainer, the index of the
            worker in the cohort.
        pending_events: the events that the driver has not acknowledged.
        discarded: how many events were dropped after the driver acknowledged them.
        outcome: True at the end of the run, False when it was stopped before, or its error; None until then.
    """

    def __init__(self, run: Run) -> None:
        from kdcl_dist.launch.ray.metrics import RayMetrics
        from kdcl_dist.membership.tcp_store import host_store

        self.run = at_this_host(run)
        self.host = ray.util.get_node_ip_address()
        self.store, self.own_endpoint = host_store(self.host)
        self.assignment: dict[int, list[int]] = {}
        self.processes = _Processes()
        threading.Thread(target=self.processes.watch_draining, name="kdcl-drains", daemon=True).start()
        self.stop_requested = threading.Event()
        self.pending_events: deque[Event] = deque()
        self.discarded = 0
        self.outcome: bool | dict[str, Any] | None = None
        self.metrics = RayMetrics(run.name)
        set_title(f"{run.name}/coordinator")
        self.some_are_here, self.begun = threading.Event(), threading.Event()
        if ray.get_runtime_context().was_current_actor_reconstructed:
            self.some_are_here.set()
            self.begun.set()
        self.thread = threading.Thread(target=self._coordinate, name="kdcl-coordinator", daemon=True)
        self.thread.start()

    def begin(self, kind: int, assignment: list[int]) -> None:
        """The workers of a kind are there, with this assignment of ranks; begin with the last kind."""
        self.assignment[kind] = assignment
        self.some_are_here.set()
        if not self._absent():
            self.begun.set()

    def _absent(self) -> list[str]:
        here = {index for indices in list(self.assignment.values()) for index in indices}
        return [worker.name for index, worker in enumerate(self.run.recipe.workers) if index not in here]

    def _coordinate(self) -> None:
        from kdcl_dist.coordinator.runtime import run_coordinator

        try:
            self._await_workers()
            self.outcome = run_coordinator(
                self.run,
                self.store,
                host=self.host,
                stop=self.stop_requested.is_set,
                emit=self._emit,
                processes=self.processes,
            )
        except CoordinatorCutOff:
            os._exit(1)  # Ray restarts the actor
        except Exception as error:  # the run's record has it, if the storage takes it
            self.outcome = wrap(error, student=None, step=None, phase="start").to_dict()

    def _await_workers(self) -> None:
        """Wait until the workers of all kinds are there.

        Without a limit for the first kind: the run waits for capacity that other jobs occupy. The actor ends
        with its driver.

        Raises:
            StartupTimeout: some hold their places, and others find none.
        """
        self.some_are_here.wait()
        limit_s = self.run.recipe.limits.startup_s
        if not self.begun.wait(limit_s):
            names = ", ".join(self._absent())
            raise StartupTimeout(
                f"{names}: no place on the cluster within {limit_s:g} s (limits.startup_s) of the others; "
                "another job took the room, or it lies in parts on several hosts: "
                "start the run again with --resume, or ask for less in resources",
                phase="start",
            )

    def _emit(self, event: Event) -> None:
        self.pending_events.append(event)
        self.metrics.handle(event)

    def output_files(self) -> tuple[int, list[str]]:
        """This process's id, and the files of this host to which it writes."""
        return own_files()

    def index_of(self, kind: int, rank: int) -> int | None:
        """The index in the cohort of the student, or replica, that a kind's worker of this rank trains.

        Waits for the workers of all kinds; None where they are not there in time, and the run is over.
        """
        if not self.begun.wait(self.run.recipe.limits.startup_s):
            return None
        return self.assignment[kind][rank]

    def register_process(self, name: str, pid: int, node: str, worker: Any) -> None:
        """Note which process, 0 for none, a worker on a node has started to train."""
        self.processes.registered[name] = _Registered(pid, worker)
        self.processes.names[node] = name

    def endpoint(self, lost: str | None) -> Endpoint:
        """Where the store listens.

        Args:
            lost: the id of the endpoint that a student has lost; if it is this endpoint's, the actor ends.
        """
        if lost == self.own_endpoint.id:
            os._exit(1)  # Ray restarts the actor
        return self.own_endpoint

    def is_over(self, wait_s: float) -> bool:
        """Whether the run has ended; waits up to `wait_s` seconds for a decision that is being taken."""
        self.thread.join(timeout=wait_s)
        return not self.thread.is_alive()

    def progress(self) -> Progress:
        """How far the run is."""
        return Progress(frozenset(self.assignment), self.begun.is_set(), not self.thread.is_alive())

    def await_outcome(self) -> bool | dict[str, Any] | None:
        """The outcome; None if the coordination does not end in time, or has not begun."""
        if self.begun.is_set():
            self.thread.join(timeout=END_S / 2)
        return self.outcome

    def stop(self) -> bool:
        """Ask for a checkpoint and an end after the current step; False if the workers are not there yet."""
        self.stop_requested.set()
        return self.begun.is_set()

    def save(self) -> None:
        """Ask for a checkpoint after the current step."""
        self.processes.save_requested = True

    def events(self, cursor: EventCursor) -> tuple[EventCursor, list[Event]]:
        """The events after the cursor, with the next cursor; the events before it are discarded."""
        count = cursor.count if cursor.coordinator == self.own_endpoint.id else 0
        while self.discarded < count:
            self.pending_events.popleft()
            self.discarded += 1
        events = list(self.pending_events)
        return EventCursor(self.own_endpoint.id, self.discarded + len(events)), events

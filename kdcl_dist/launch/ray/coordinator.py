"""The actor of the coordinator, by which driver and workers reach the coordinator's process.

The actor starts without Ray Train, whose import takes seconds and comes later, with the workers' handles.
"""

from __future__ import annotations

import threading
import uuid
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from kdcl_dist.coordinator.processes import SAVE_ASKED
from kdcl_dist.errors import StartupTimeout, wrap
from kdcl_dist.launch.messages import CohortAsked
from kdcl_dist.launch.ray.common import END_S, actor_name, at_this_host
from kdcl_dist.launch.ray.coordinator_process import CoordinatorProcess
from kdcl_dist.launch.ray.metrics import RayMetrics
from kdcl_dist.launch.ray.private import set_title
from kdcl_dist.launch.ray.processes import RayProcesses
from kdcl_dist.launch.ray.spares import Assigned, Place, Places
from kdcl_dist.membership.endpoint import Endpoint
from kdcl_dist.run.events import Event, Note, Started
from kdcl_dist.run.run import Run

__all__ = ["EventCursor", "Progress", "Whereabouts", "start_coordinator"]

#: Calls that the actor answers at once besides those of spares, and of members at the run's start.
CALLS = 64
#: Seconds for which one call waits for a coordinator that starts; shorter than its caller's patience.
FIND_S = 5.0


def start_coordinator(run: Run) -> Any:
    """Start the coordinator's actor on this node; its server imports, and it waits for `begin`."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    spares = run.recipe.failure.spares * len(run.recipe.students)  # at most
    return CoordinatorActor.options(  # type: ignore[attr-defined]
        name=actor_name(run),
        num_cpus=0,
        max_concurrency=CALLS + len(run.recipe.members) + spares,
        max_restarts=run.recipe.failure.allowed,
        scheduling_strategy=here,
    ).remote(run.for_coordinator())


@dataclass(frozen=True)
class EventCursor:
    """How many events of one actor the driver has received.

    Attributes:
        actor: its id; the next actor counts from 0.
        count: events.
    """

    actor: str = ""
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
class Whereabouts:
    """Where the coordinator is.

    Attributes:
        endpoint: of its store; None while it starts.
        is_over: whether the run has ended, and there is none any more.
    """

    endpoint: Endpoint | None
    is_over: bool


@ray.remote
class CoordinatorActor:
    """Supervises the coordinator's process in a thread, and answers calls meanwhile.

    The actor's server of processes imports as long as the workers start. The coordination begins when the
    workers are there. Ray restarts the actor when it dies, and its process with it; the coordination then
    goes on at once, from the run's record.

    Attributes:
        id: another for each life of the actor.
        places: of the workers, and whom each of them trains.
        pending_events: the events, and changes that the cohort is asked for, that the driver has not
            acknowledged.
        discarded: how many events were dropped after the driver acknowledged them.
        outcome: True at the end of the run, False when it was stopped before, or its error; None until then.
        placed: the workers of the latest generation.
        lack: the failure of a worker that is not replaced, where the others trained on without it.
    """

    def __init__(self, run: Run) -> None:
        self.run, self.id = at_this_host(run), uuid.uuid4().hex
        self.places = Places(run.recipe, lambda text: self._emit(Note(text)))
        self.processes = RayProcesses()
        self.coordinator = CoordinatorProcess(self.run, self.processes, self._emit)
        watch, notice = self.processes.watch_draining, self.coordinator.notice
        threading.Thread(target=watch, args=(notice,), name="kdcl-drains", daemon=True).start()
        self.pending_events = deque[Event | CohortAsked]()
        self.discarded = 0
        self.outcome: bool | dict[str, Any] | None = None
        self.placed, self.lack = set[str](), dict[str, Any]()
        self.metrics = RayMetrics(run.name)
        set_title(f"{run.name}/coordinator")
        self.some_are_here, self.begun, self.over = (threading.Event() for _ in range(3))
        if ray.get_runtime_context().was_current_actor_reconstructed:
            self.some_are_here.set()
            self.begun.set()
        if run.recipe.failure.spares:
            threading.Thread(target=self.places.watch, name="kdcl-spares", daemon=True).start()
        threading.Thread(target=self._coordinate, name="kdcl-coordinator", daemon=True).start()

    def begin(self, kind: int, assignment: list[int | None], anew: bool) -> None:
        """The workers of a kind are there, as of `Places.begin`; begin with the last kind."""
        self.places.begin(kind, assignment, anew=anew)
        self.some_are_here.set()
        if not self._absent():
            self.begun.set()

    def _absent(self) -> list[str]:
        here = self.places.students
        return [worker.name for index, worker in enumerate(self.run.recipe.workers) if index not in here]

    def _coordinate(self) -> None:
        try:
            self._await_workers()
            self.outcome = self.coordinator.supervise() or self.lack or False
        except Exception as error:  # the run's record has it, if the storage takes it
            self.outcome = wrap(error, student=None, step=None, phase="start").to_dict()
        finally:
            self.over.set()
            self.places.end()

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

    def _emit(self, event: Event | CohortAsked) -> None:
        if isinstance(event, Started):
            self.placed = {*event.placement}
        self.pending_events.append(event)
        if not isinstance(event, CohortAsked):
            self.metrics.handle(event)

    def student_of(
        self, place: Place, worker: Any, accelerator: str | None, assignment: Sequence[int | None]
    ) -> Assigned:
        """Whom a worker trains, once the workers of all kinds are there; waits for it for some seconds."""
        if not self.begun.wait(FIND_S):
            return Assigned(None, self.over.is_set())
        self.places.report(place, worker, accelerator, assignment)
        return self.places.student_of(place, FIND_S)

    def register_process(
        self, name: str, pid: int, node: str, worker: Any, place: Place | None = None
    ) -> None:
        """Note which process, 0 for none, a worker on a node, in a place, has started to train."""
        self.processes.register(name, pid, node, worker)
        if place is not None:
            self.places.hold(place, self.run.recipe.members.index(name), worker)

    def find(self, lost: str | None) -> Whereabouts:
        """Where the store listens; waits for it for some seconds.

        Args:
            lost: the id of the endpoint that a student has lost; if it is the present one, the coordinator's
                process is ended.
        """
        endpoint = None if self.over.is_set() else self.coordinator.find(lost, FIND_S)
        return Whereabouts(endpoint, self.over.is_set())

    def is_over(self, wait_s: float) -> bool:
        """Whether the run has ended; waits up to `wait_s` seconds for a decision that is being taken."""
        return self.over.wait(wait_s)

    def progress(self) -> Progress:
        """How far the run is."""
        return Progress(frozenset(self.places.kinds), self.begun.is_set(), self.over.is_set())

    def await_outcome(self) -> bool | dict[str, Any] | None:
        """The outcome; None if the coordination does not end in time, or has not begun."""
        if self.begun.is_set():
            self.over.wait(END_S / 2)
        return self.outcome

    def stop(self) -> bool:
        """Ask for a checkpoint and an end after the current step; False if the workers are not there yet."""
        self.coordinator.stop()
        return self.begun.is_set()

    def give_up(self, name: str, failure: dict[str, Any]) -> bool:
        """A member has failed and is not replaced; whether the run stops for it, with a checkpoint.

        It does where the others train on, unaware of it, since it joins later. Else the coordinator decides.
        """
        if not self.placed or name in {*self.placed, *self.run.recipe.assistants}:
            return False
        self.lack = self.lack or failure
        self.coordinator.stop()
        return True

    def save(self) -> None:
        """Ask for a checkpoint after the current step."""
        self.coordinator.notice(SAVE_ASKED)

    def events(self, cursor: EventCursor) -> tuple[EventCursor, list[Event | CohortAsked]]:
        """The events after the cursor, with the next cursor; the events before it are discarded."""
        count = cursor.count if cursor.actor == self.id else 0
        while self.discarded < count:
            self.pending_events.popleft()
            self.discarded += 1
        events = list(self.pending_events)
        return EventCursor(self.id, self.discarded + len(events)), events

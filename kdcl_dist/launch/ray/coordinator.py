"""The coordinator as an actor.

It starts without Ray Train, which takes seconds to import; that comes later, with the workers' handles. Who
calls it imports this module to know its methods, so the actor itself imports what they need.
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

from kdcl_dist.errors import CoordinatorCutOff, wrap
from kdcl_dist.launch.ray.common import POLL_S, actor_name, at_this_host, end_process, nothing
from kdcl_dist.launch.ray.process_title import set_title
from kdcl_dist.membership.endpoint import Endpoint
from kdcl_dist.run.events import Event
from kdcl_dist.run.run import Run

__all__ = ["END_S", "EventCursor", "start_coordinator"]

#: Seconds between two looks for hosts that are to go.
DRAIN_S = 2.0
#: Seconds that the coordinator may take to end, once the students have.
END_S = 20.0
#: Seconds within which a worker ends the process that it has started.
KILL_S = 5.0


def start_coordinator(run: Run) -> Any:
    """The coordinator's actor on this node. It imports what it needs, and waits until it is told to begin."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    return CoordinatorActor.options(  # type: ignore[attr-defined]
        name=actor_name(run),
        num_cpus=0,
        max_concurrency=8 + len(run.recipe.workers),
        max_restarts=run.recipe.failure.allowed,
        scheduling_strategy=here,
    ).remote(run)


@dataclass(frozen=True)
class EventCursor:
    """How many events the driver has heard, and of which coordinator: a new one begins anew."""

    coordinator: str = ""
    count: int = 0


#: For each member, the process that trains, and the actor of the worker that has started it.
Workers = dict[str, tuple[int, Any]]


class _Processes:
    """See `kdcl_dist.coordinator.runtime.Processes`."""

    def __init__(self, workers: Workers, nodes: dict[str, str]) -> None:
        self.workers, self.nodes = workers, nodes
        self.asked: dict[int, Any] = {}
        self.draining: set[str] = set()
        self.told: set[str] = set()

    def is_gone(self, name: str, pid: int) -> bool:
        """Whether the process is known to be dead, by its worker's word, or since that is dead itself.

        A question to a dead worker fails, and else waits or ends.
        """
        known, worker = self.workers.get(name, (pid, None))
        if known != pid or worker is None:
            return known != pid
        if pid not in self.asked:
            self.asked[pid] = worker.__ray_call__.remote(nothing)
        if not ray.wait([self.asked[pid]], timeout=0)[0]:
            return False
        try:
            ray.get(self.asked.pop(pid))
        except RayError:
            return True
        return False

    def end(self, name: str, pid: int) -> None:
        """Let the worker end its process; a worker that does not answer is ended itself."""
        known, worker = self.workers.get(name, (0, None))
        if known != pid:  # another has taken its place already
            return
        asked = worker.__ray_call__.remote(end_process, pid)
        if not ray.wait([asked], timeout=KILL_S)[0]:
            ray.kill(worker)

    def notice(self) -> str | None:
        """A host of the cohort that drains, as spot hosts do before they are taken away."""
        news = self.draining & set(self.nodes) - self.told
        self.told |= news
        return (
            f"the host of {', '.join(self.nodes[node] for node in sorted(news))} is to go" if news else None
        )

    def watch(self) -> None:
        """Look for hosts that drain, for ever; in a thread, since nobody knows how long Ray takes to answer.

        Ray Train's own watcher does not work where one worker is replaced at a time. The call is Ray's own,
        which that watcher uses; with a Ray that lacks it there is no notice.
        """
        with contextlib.suppress(AttributeError):
            while True:
                with contextlib.suppress(RayError, RuntimeError):
                    self.draining = set(ray._private.state.state.get_draining_nodes())
                time.sleep(DRAIN_S)


@ray.remote
class CoordinatorActor:
    """The coordinator's process, which works in a thread; the calls are answered beside it.

    Its process starts beside those of the workers, and imports as long as they do; the coordination begins
    when they are there. Ray makes it again when it dies; it then goes on at once, from the run's record.
    """

    def __init__(self, run: Run) -> None:
        from kdcl_dist.launch.ray.metrics import RayMetrics
        from kdcl_dist.membership.tcp_store import host_store

        self.run = at_this_host(run)
        self.host = ray.util.get_node_ip_address()
        self.store, self.own = host_store(self.host)
        self.places: list[int] = []
        self.workers: Workers = {}
        self.nodes = {ray.get_runtime_context().get_node_id(): "the coordinator"}
        self.processes = _Processes(self.workers, self.nodes)
        threading.Thread(target=self.processes.watch, name="kdcl-drains", daemon=True).start()
        self.stopping = threading.Event()
        self.emitted: deque[Event] = deque()
        self.forgotten = self.heard = 0
        self.outcome: bool | dict[str, Any] | None = None
        self.metrics = RayMetrics(run.name)
        set_title(f"{run.name}/coordinator")
        self.begun = threading.Event()
        if ray.get_runtime_context().was_current_actor_reconstructed:
            self.begun.set()
        self.thread = threading.Thread(target=self._serve, name="kdcl-coordinator", daemon=True)
        self.thread.start()

    def begin(self, places: list[int]) -> None:
        """Coordinate from now on, if not yet; the worker of each rank trains the student of this place."""
        self.places = places
        self.begun.set()

    def _serve(self) -> None:
        from kdcl_dist.coordinator.runtime import run_coordinator

        self.begun.wait()
        try:
            self.outcome = run_coordinator(
                self.run,
                self.store,
                host=self.host,
                stop=self.stopping.is_set,
                emit=self._emit,
                processes=self.processes,
            )
        except CoordinatorCutOff:
            os._exit(1)  # Ray makes it again
        except Exception as error:  # the run's record has it, if the storage takes it
            self.outcome = wrap(error, student=None, step=None, phase="start").to_dict()

    def _emit(self, event: Event) -> None:
        self.emitted.append(event)
        self.metrics.handle(event)

    def place(self, rank: int) -> int:
        """Which student, or replica, the worker of this rank trains."""
        return self.places[rank]

    def note(self, name: str, pid: int, node: str, worker: Any) -> None:
        """A worker, on a node, says which process trains now, 0 for none."""
        self.workers[name] = pid, worker
        self.nodes[node] = name

    def endpoint(self, lost: str | None) -> Endpoint:
        """Where the store is. If a student has lost the one of this id, and it is this, the actor ends."""
        if lost == self.own.id:
            os._exit(1)  # Ray makes it again
        return self.own

    def is_over(self, wait_s: float) -> bool:
        """Whether the run has ended; waits some seconds for a decision that is about to be taken."""
        self.thread.join(timeout=wait_s)
        return not self.thread.is_alive()

    def how_it_ended(self) -> bool | dict[str, Any] | None:
        """True at the end of the run, False when it was stopped before, or its error; None: nobody knows."""
        self.thread.join(timeout=END_S / 2)
        return self.outcome

    def stop(self) -> None:
        """Ask for a checkpoint and an end after the current step."""
        self.stopping.set()

    def events(self, cursor: EventCursor) -> tuple[EventCursor, list[Event]]:
        """The events after those that the driver has heard, which are forgotten."""
        count = cursor.count if cursor.coordinator == self.own.id else 0
        while self.forgotten < count:
            self.emitted.popleft()
            self.forgotten += 1
        events = list(self.emitted)
        self.heard = self.forgotten + len(events)
        return EventCursor(self.own.id, self.heard), events

    def drain(self) -> None:
        """Return when the driver has heard all events, or after a few polls without it."""
        if not self.begun.is_set():
            return
        self.thread.join(timeout=END_S / 4)  # it does not end when all workers are about to be replaced
        deadline = time.monotonic() + 5 * POLL_S
        while self.heard < self.forgotten + len(self.emitted) and time.monotonic() < deadline:
            time.sleep(POLL_S / 4)

"""The coordinator as an actor.

It starts without Ray Train, which takes seconds to import; that comes later, with the workers' handles.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import deque
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from kdcl_dist.chair import run_coordinator
from kdcl_dist.errors import KdclError
from kdcl_dist.events import Event
from kdcl_dist.exchange import Endpoint, host_store
from kdcl_dist.launch.ray_metrics import RayMetrics
from kdcl_dist.launch.ray_title import set_title
from kdcl_dist.runs import Run

__all__ = ["END_S", "POLL_S", "Hearing", "actor_name", "at_this_host", "start_coordinator"]

#: Seconds between two looks for what is new.
POLL_S = 0.2
#: Seconds between two looks for hosts that are to go.
DRAIN_S = 2.0
#: Seconds that the coordinator may take to end, once the students have.
END_S = 20.0
#: Seconds in which it learns of a worker's failure and decides.
DECIDE_S = 1.0


def start_coordinator(run: Run) -> Any:
    """The coordinator's actor on this node. It imports what it needs, and waits until it is told to begin."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    return CoordinatorActor.options(  # type: ignore[attr-defined]
        name=actor_name(run),
        num_cpus=0,
        max_concurrency=8 + len(run.recipe.members),
        max_restarts=run.recipe.failure.allowed,
        scheduling_strategy=here,
    ).remote(run)


def actor_name(run: Run) -> str:
    """By which workers and driver find the actor."""
    return f"kdcl-coordinator-{run.id}"


@dataclass(frozen=True)
class Hearing:
    """How many events the driver has heard, and of which coordinator: a new one begins anew."""

    coordinator: str = ""
    count: int = 0


def at_this_host(run: Run) -> Run:
    """The run with the root that it has on this host.

    Ray unpacks a job's working directory on every host, below its own temporary folder: mostly at the same
    path as on the driver's host, which is the root, but not where that folder was chosen otherwise. A
    worker of such a job has its copy first on PYTHONPATH.
    """
    unpacked = os.environ.get("PYTHONPATH", "").split(os.pathsep)[0]
    if Path(run.root).is_dir() or not ray.get_runtime_context().runtime_env.get("working_dir"):
        return run
    return replace(run, root=unpacked)


#: Process id and actor of each member.
Workers = dict[str, tuple[int, Any]]


class _Processes:
    """See `kdcl_dist.chair.Processes`."""

    def __init__(self, workers: Workers, nodes: dict[str, str]) -> None:
        self.workers, self.nodes = workers, nodes
        self.asked: dict[int, Any] = {}
        self.draining: set[str] = set()
        self.told: set[str] = set()

    def is_gone(self, name: str, pid: int) -> bool:
        """Whether Ray knows that the worker is dead: a question to it fails then, and else waits or ends."""
        known, worker = self.workers.get(name, (pid, None))
        if known != pid or worker is None:
            return known != pid
        if pid not in self.asked:
            self.asked[pid] = worker.__ray_call__.remote(_nothing)
        if not ray.wait([self.asked[pid]], timeout=0)[0]:
            return False
        try:
            ray.get(self.asked.pop(pid))
        except RayError:
            return True
        return False

    def end(self, name: str, pid: int) -> None:
        """End the worker's process."""
        known, worker = self.workers.get(name, (0, None))
        if known == pid:  # else another has taken its place already
            ray.kill(worker)

    def notice(self) -> str | None:
        """A host of the cast that drains, as spot hosts do before they are taken away."""
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


def _nothing(worker: Any) -> None:
    """What a worker is asked to see whether it lives."""


@ray.remote
class CoordinatorActor:
    """The coordinator's process, which works in a thread; the calls are answered beside it.

    Its process starts beside those of the workers, and imports as long as they do; the coordination begins
    when they are there. Ray makes it again when it dies; it then goes on at once, from the run's record.
    """

    def __init__(self, run: Run) -> None:
        self.run = at_this_host(run)
        self.host = ray.util.get_node_ip_address()
        self.store, self.own = host_store(self.host)
        self.places: list[int] = []
        self.workers: Workers = {}
        self.nodes = {ray.get_runtime_context().get_node_id(): "the coordinator"}
        self.processes = _Processes(self.workers, self.nodes)
        threading.Thread(target=self.processes.watch, name="kdcl-drains", daemon=True).start()
        self.stopping = threading.Event()
        self.told: deque[Event] = deque()
        self.heard = 0
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
        self.begun.wait()
        with contextlib.suppress(KdclError):  # the run's record has the cause
            run_coordinator(
                self.run,
                self.store,
                host=self.host,
                stop=self.stopping.is_set,
                tell=self._tell,
                processes=self.processes,
            )

    def _tell(self, event: Event) -> None:
        self.told.append(event)
        self.metrics.hear(event)

    def place(self, rank: int, pid: int, node: str, worker: Any) -> int:
        """Which student the worker of this rank trains; it is an actor with this process id on a node."""
        place = self.places[rank]
        name = self.run.recipe.members[place].name
        self.workers[name] = pid, worker
        self.nodes[node] = name
        return place

    def endpoint(self) -> Endpoint:
        """Where the store is."""
        return self.own

    def is_over(self) -> bool:
        """Whether the run has ended; waits a moment for a decision that is about to be taken."""
        self.thread.join(timeout=DECIDE_S)
        return not self.thread.is_alive()

    def stop(self) -> None:
        """Ask for a checkpoint and an end after the current step."""
        self.stopping.set()

    def events(self, hearing: Hearing) -> tuple[Hearing, list[Event]]:
        """The events after those that the driver has heard."""
        count = hearing.count if hearing.coordinator == self.own.id else 0
        events = list(self.told)
        self.heard = len(events)
        return Hearing(self.own.id, self.heard), events[count:]

    def drain(self) -> None:
        """Return when the driver has heard all events, or after a few polls without it."""
        if not self.begun.is_set():
            return
        self.thread.join(timeout=END_S / 4)  # it does not end when all workers are about to be replaced
        deadline = time.monotonic() + 5 * POLL_S
        while self.heard < len(self.told) and time.monotonic() < deadline:
            time.sleep(POLL_S / 4)

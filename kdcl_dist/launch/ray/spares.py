"""Which worker of Ray trains which student, and how a spare takes over for a worker that has died.

A spare is a worker of Ray Train like the others, which waits with its imports done. When a worker dies, a
spare of its kind takes over its student at once. The worker that Ray Train starts in place of the dead one is
then the next spare. The coordinator's actor decides; after a restart by Ray it asks the workers who is who.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from operator import itemgetter
from typing import Any

import ray
from ray.exceptions import ActorUnavailableError, GetTimeoutError, RayActorError, RayError

from kdcl_dist.config.recipe import Recipe
from kdcl_dist.errors import CoordinatorLost
from kdcl_dist.launch.ray.common import POLL_S, ping

__all__ = ["Assigned", "Place", "Places", "await_student", "students_first"]

#: Seconds between two looks whether the workers live.
LOOK_S = 0.5
#: A worker of Ray Train: the number of its kind, and its rank there.
Place = tuple[int, int]


@dataclass(frozen=True)
class Assigned:
    """What the coordinator's actor answers to a worker that asks for its student.

    Attributes:
        index: of the student, or replica, in the cohort; None for a spare.
        is_over: whether the run has ended.
        took_over: when the worker took over for another as a spare, in UTC; empty for others.
    """

    index: int | None
    is_over: bool
    took_over: str = ""


@dataclass
class _Worker:
    """What is known of a place's worker.

    Attributes:
        index: of the student, or replica, in the cohort; None for a spare.
        actor: of the worker; None before it has reported, and once it has died.
        accelerator: type of its host; None without one.
        has_died: whether the place waits for Ray Train to start another worker.
        took_over: as of `Assigned`.
    """

    index: int | None = None
    actor: Any = None
    accelerator: str | None = None
    has_died: bool = False
    took_over: str = ""


class Places:
    """The places of all kinds of workers, as the coordinator's actor knows them; for several threads.

    Args:
        recipe: of the run.
        tell: called with a line for each spare that takes over.

    Attributes:
        kinds: the assignment of each kind that is there, by rank; None for a spare. After a restart of the
            actor it may be of before a spare took over: only the students in it count.
    """

    def __init__(self, recipe: Recipe, tell: Callable[[str], None] = lambda text: None) -> None:
        self.recipe, self.tell = recipe, tell
        self.kinds: dict[int, list[int | None]] = {}
        self._workers: dict[Place, _Worker] = {}
        self._is_over = False
        self._changed = threading.Condition()

    @property
    def students(self) -> set[int]:
        """The indices in the cohort of those whose workers are there."""
        return {index for indices in list(self.kinds.values()) for index in indices if index is not None}

    def begin(self, kind: int, assignment: Sequence[int | None], *, anew: bool) -> None:
        """The workers of a kind are there.

        Args:
            kind: its number.
            assignment: by rank the index of the student, or replica, in the cohort; None for a spare.
            anew: whether all have just been started, and not one in place of another.
        """
        with self._changed:
            self.kinds[kind] = list(assignment)
            if anew:
                for rank, index in enumerate(assignment):
                    self._workers[kind, rank] = _Worker(index)
            self._changed.notify_all()

    def report(
        self, place: Place, actor: Any, accelerator: str | None, assignment: Sequence[int | None]
    ) -> None:
        """A worker that trains nobody yet is there; it knows the assignment of its kind, as of `begin`."""
        with self._changed:
            self.kinds.setdefault(place[0], list(assignment))  # `begin` may have told another actor
            worker = self._workers.setdefault(place, _Worker())
            worker.actor, worker.accelerator, worker.has_died = actor, accelerator, False
            self._hand_over(place[0])
            self._settle(place[0])

    def hold(self, place: Place, index: int, actor: Any) -> None:
        """A worker trains a student already, whoever was assigned to it."""
        with self._changed:
            worker = self._workers.setdefault(place, _Worker())
            worker.actor, worker.has_died = actor, False
            self._assign(worker, index)

    def lose(self, dead: Mapping[Place, Any]) -> None:
        """Workers have died: spares take over; without one the next worker of a place will.

        Args:
            dead: their actors.
        """
        with self._changed:
            for place, actor in dead.items():
                if (worker := self._workers[place]).actor is actor:  # else it is replaced already
                    worker.actor, worker.has_died = None, True
            for kind in {kind for kind, _ in dead}:
                self._hand_over(kind)

    def _hand_over(self, kind: int) -> None:
        """Let spares of a kind take over for its workers that have died."""
        for worker in self._of(kind):
            if worker.has_died and worker.index is not None and (spare := self._spare(worker.index, kind)):
                name = self.recipe.workers[worker.index].name
                self._assign(spare, worker.index)
                spare.took_over = datetime.now(timezone.utc).isoformat(timespec="seconds")
                self.tell(f"{name}: its worker of Ray died; a spare takes over")

    def _settle(self, kind: int) -> None:
        """Give workers to the students of a kind that none of its workers trains, once all have reported.

        There are such after a restart of the coordinator's actor only.
        """
        workers, assigned = self._of(kind), self.kinds.get(kind, [])
        if len(workers) < len(assigned) or any(worker.actor is None for worker in workers):
            return
        trained = {worker.index for worker in workers}
        for index in assigned:
            if index is not None and index not in trained and (spare := self._spare(index, kind)):
                self._assign(spare, index)

    def _of(self, kind: int) -> list[_Worker]:
        """The workers of a kind, by rank."""
        return [
            worker for (own, _), worker in sorted(self._workers.items(), key=itemgetter(0)) if own == kind
        ]

    def _spare(self, index: int, kind: int) -> _Worker | None:
        """A spare of a kind on a host that suits a student."""
        wanted = self.recipe.students[self.recipe.workers[index].student].accelerator
        spares = [each for each in self._of(kind) if each.index is None and each.actor is not None]
        return next((spare for spare in spares if wanted in (None, spare.accelerator)), None)

    def _assign(self, worker: _Worker, index: int) -> None:
        """Let a worker, and no other, train a student."""
        for other in self._workers.values():
            other.index = None if other.index == index else other.index
        worker.index = index
        self._changed.notify_all()

    def student_of(self, place: Place, wait_s: float) -> Assigned:
        """Whom a worker trains; waits so many seconds for an answer other than that it is a spare."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_over or self._found(place).index is not None, wait_s)
            worker = self._found(place)
            return Assigned(worker.index, self._is_over, worker.took_over)

    def _found(self, place: Place) -> _Worker:
        return self._workers.get(place, _Worker())

    def end(self) -> None:
        """The run has ended: no spare waits any more."""
        with self._changed:
            self._is_over = True
            self._changed.notify_all()

    def watch(self) -> None:
        """Look after the workers to the run's end, and let spares take over; in a thread."""
        pings: dict[Place, tuple[Any, Any]] = {}
        while not self._is_over:
            with suppress(RayError):
                self.look(pings)
            time.sleep(LOOK_S)

    def look(self, pings: dict[Place, tuple[Any, Any]]) -> None:
        """Look once after the workers; `pings` has the latest question to each, with the actor asked."""
        with self._changed:
            actors = {place: each.actor for place, each in self._workers.items() if each.actor is not None}
        dead: dict[Place, Any] = {}
        for place, actor in actors.items():
            asked, answer = pings.get(place, (None, None))
            if asked is actor and not ray.wait([answer], timeout=0)[0]:
                continue
            if asked is actor and _is_of_a_dead_actor(answer):
                dead[place] = actor
            pings[place] = actor, actor.__ray_call__.remote(ping)
        self.lose(dead)


def _is_of_a_dead_actor(answer: Any) -> bool:
    """Whether a call has failed since its actor is dead, and not only out of reach for a moment."""
    try:
        ray.get(answer)
    except RayError as error:
        return isinstance(error, RayActorError) and not isinstance(error, ActorUnavailableError)
    return False


def await_student(
    actor: Any, place: Place, accelerator: str | None, assignment: Sequence[int | None], limit_s: float
) -> Assigned:
    """Ask the coordinator's actor whom this worker trains; a spare waits for that to the run's end.

    Args:
        actor: the coordinator's.
        place: of this worker.
        accelerator: type of this host.
        assignment: of this worker's kind, as of `Places.begin`.
        limit_s: seconds within which the actor answers.

    Raises:
        CoordinatorLost: it does not.
    """
    own, deadline = ray.get_runtime_context().current_actor, time.monotonic() + limit_s
    while (left_s := deadline - time.monotonic()) > 0:
        try:
            asked = actor.student_of.remote(place, own, accelerator, assignment)
            found: Assigned = ray.get(asked, timeout=left_s)
        except (RayActorError, GetTimeoutError):  # Ray restarts it
            time.sleep(POLL_S)
            continue
        if found.is_over or found.index is not None:
            return found
        deadline = time.monotonic() + limit_s
    raise CoordinatorLost(f"no coordinator answers within {limit_s:g} s (limits.startup_s)")


def students_first(nodes: Sequence[str]) -> list[int]:
    """The ranks of a kind's workers in the order in which students take them; the last ones become spares.

    Hosts with many of the workers are first, so that a spare has another host than the students if it can.

    Args:
        nodes: by rank the node of the worker.
    """
    return sorted(range(len(nodes)), key=lambda rank: -nodes.count(nodes[rank]))

"""The workers that join a run on Ray while the others train, each an actor of its own.

Ray Train starts all workers of a trainer at once. An actor takes its place beside them, and gives it back
when its student has left. As the local launcher does, the driver refuses a student whose process fails before
the student has joined, and replaces one that fails later.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import ray
from ray.exceptions import RayError

from kdcl_dist.config.recipe import Recipe
from kdcl_dist.config.student import Student
from kdcl_dist.coordinator.recovery_policy import is_fatal
from kdcl_dist.errors import KdclError, RecipeError, StartupTimeout, StudentLost, from_dict, one_line
from kdcl_dist.launch.devices import device_on_ray
from kdcl_dist.launch.messages import CohortAsked
from kdcl_dist.launch.newcomers import Newcomers
from kdcl_dist.launch.preflight.placement import Need, lacks, need_beside
from kdcl_dist.launch.ray.common import END_S
from kdcl_dist.launch.ray.head import Head
from kdcl_dist.launch.ray.newcomer_actor import NewcomerActor
from kdcl_dist.launch.ray.preflight import hosts, may_grow
from kdcl_dist.run.events import Event
from kdcl_dist.run.run import Run

__all__ = ["Joined"]

#: The part of `limits.startup_s` within which a newcomer finds its place: one in so many.
ROOM_SHARE = 2
#: Calls that a worker answers at once: that which trains, and the coordinator's about its process.
CALLS = 4


class Joined:
    """All workers that join a run, before they belong to it and since.

    Args:
        run: the run as it started.
        needs: of the workers that Ray Train has started.
        head: of the cluster.
        on_event: called with each event.
        shares_cores: whether workers may share cores: then those that join reserve none.

    Attributes:
        newcomers: those that do not belong to the run yet.
        members: those that do, until their students have left.
        replacements: how many processes were replaced, by the names of workers.
    """

    def __init__(
        self,
        run: Run,
        needs: Sequence[Need],
        head: Head,
        on_event: Callable[[Event], None],
        shares_cores: bool = False,
    ) -> None:
        self.run, self.needs, self.head, self.shares_cores = run, needs, head, shares_cores
        self.newcomers = _Newcomers(run.folder, self._start, on_event)
        self.members = list[_Worker]()
        self.replacements = Counter[str]()

    @property
    def works(self) -> bool:
        """Whether a worker of the run trains."""
        return any(member.works for member in self.members)

    @property
    def failures(self) -> list[KdclError]:
        """Those that no new process follows."""
        return [error for member in self.members if (error := member.failure()) is not None]

    def admit(self, asked: CohortAsked) -> None:
        """Note who belongs to the run now, and have workers for those who are to join."""
        self.members += self.newcomers.take(asked.recipe)
        self.newcomers.admit(asked.recipe, asked.wanted)

    def care(self) -> None:
        """Refuse those that cannot join; of the others replace processes, and give back places."""
        self.newcomers.refuse_failed()
        for member in [member for member in self.members if not member.works]:
            if (error := member.failure()) is None:
                self.members.remove(member)
                member.end()
            elif self._may_replace(member, error):
                self.replacements[member.name] += 1
                member.begin()

    def _may_replace(self, member: _Worker, error: KdclError) -> bool:
        failure = self.run.recipe.failure
        return not is_fatal(failure, [], error) and self.replacements[member.name] < failure.allowed

    def close(self) -> None:
        """End all workers."""
        self.newcomers.close()
        for member in self.members:
            member.end()

    def _start(self, name: str, wanted: Recipe) -> _Worker:
        """Start the worker of a name.

        Raises:
            RecipeError: no host could ever have room for it.
            KdclError: the cluster does not answer.
        """
        if self.head.is_away:
            raise KdclError(f"the head of the Ray cluster, {self.head.address}, does not answer")
        rank = next(rank for rank, worker in enumerate(wanted.workers) if worker.name == name)
        student = wanted.students[wanted.workers[rank].student]
        need = self._need(student)
        return _Worker(replace(self.run, recipe=wanted), rank, need, device_on_ray(student, need))

    def _need(self, student: Student) -> Need:
        """What a worker that is to join reserves; raises `RecipeError` where no host could have it."""
        offered, others = hosts(), [*self.members, *self.newcomers.processes.values()]
        if self.shares_cores:
            offered = [replace(host, cpu=math.inf) for host in offered]
        need = need_beside(student, [*self.needs, *(other.need for other in others)], offered)
        if (lack := lacks([need], offered)) and not may_grow():
            raise RecipeError(lack[0])
        return replace(need, cpu=0.0) if self.shares_cores else need


class _Worker:
    """A worker on the cluster, which starts one process after another, as it is told.

    Args:
        run: with the recipe of all who are to join.
        rank: of the worker in it.
        need: what Ray reserves.
        device: the name of a torch device, or "auto".
    """

    def __init__(self, run: Run, rank: int, need: Need, device: str) -> None:
        self.name, self.need = run.recipe.workers[rank].name, need
        self.limit_s, self._since = run.recipe.limits.startup_s / ROOM_SHARE, time.monotonic()
        self._actor = NewcomerActor.options(  # type: ignore[attr-defined]
            num_cpus=need.cpu,
            num_gpus=need.gpu,
            label_selector=need.label_selector,
            max_restarts=-1,
            max_concurrency=CALLS,
        ).remote(run, rank, device)
        self._placed = self._actor.__ray_ready__.remote()
        self.begin()

    def begin(self) -> None:
        """Start a process, which trains. Ray starts an actor that dies again, which then does so."""
        self._result = self._actor.train.remote()

    @property
    def works(self) -> bool:
        """Whether the process trains, or is about to."""
        return not _is_there(self._result)

    def failure(self) -> KdclError | None:
        """How the process has failed, or that the worker finds no place; None where neither is so."""
        if self.works:
            late = time.monotonic() - self._since > self.limit_s and not _is_there(self._placed)
            return self._no_place() if late else None
        try:
            found: dict[str, Any] | None = ray.get(self._result, timeout=END_S)
        except RayError as error:
            return StudentLost(f"the worker of {self.name} died: {one_line(error)}", student=self.name)
        return None if found is None else from_dict(found)

    def _no_place(self) -> StartupTimeout:
        return StartupTimeout(
            f"no place on the cluster for {self.need} within {self.limit_s:g} s (half of limits.startup_s)"
        )

    def end(self) -> None:
        """End the worker, and its process with it."""
        ray.kill(self._actor)


class _Newcomers(Newcomers[_Worker]):
    """Workers that do not belong to the run yet."""

    def failure(self, process: _Worker) -> KdclError | None:
        """See `Newcomers`."""
        return process.failure()

    def end(self, process: _Worker) -> None:
        """See `Newcomers`."""
        process.end()


def _is_there(answer: Any) -> bool:
    """Whether a call is answered, or has failed."""
    return bool(ray.wait([answer], timeout=0)[0])

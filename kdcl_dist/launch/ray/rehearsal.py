"""The rehearsal of students on the hosts of a Ray cluster.

On each host one actor rehearses the students that train on the CPU, one after the other, and one actor for
each share of a GPU those that take such a share: Ray gives the actor a GPU that nobody uses.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from kdcl_dist.config.recipe import Recipe
from kdcl_dist.errors import one_line
from kdcl_dist.launch.devices import devices_on_ray
from kdcl_dist.launch.preflight.placement import Host, Need
from kdcl_dist.launch.preflight.rehearsal import Rehearsal, rehearse
from kdcl_dist.launch.processes import GRACE_S
from kdcl_dist.run.process import use_root

__all__ = ["rehearse_on"]


def rehearse_on(recipe: Recipe, needs: Sequence[Need], hosts: Mapping[str, Host]) -> list[Rehearsal]:
    """Rehearse every student on every host that may hold it.

    Args:
        recipe: the run.
        needs: of its workers.
        hosts: by the ids of their nodes.
    """
    jobs = [
        _Job(recipe, node, host, gpu, device, indices)
        for node, host in hosts.items()
        for (gpu, device), indices in _by_device(recipe, needs, host).items()
    ]
    try:
        if not jobs:
            return []
        ray.wait([job.started for job in jobs], num_returns=len(jobs), timeout=recipe.limits.startup_s)
        return [found for job in jobs for found in job.results()]
    finally:
        for job in jobs:
            ray.kill(job.actor)


def _by_device(recipe: Recipe, needs: Sequence[Need], host: Host) -> dict[tuple[float, str], list[int]]:
    """The indices of the students that the host may hold, by the share of a GPU and the device."""
    found: dict[tuple[float, str], list[int]] = {}
    devices = devices_on_ray(recipe, needs)
    for worker, need, device in zip(recipe.workers, needs, devices, strict=True):
        if worker.replica == 0 and host.suits(need):
            found.setdefault((need.gpu, device), []).append(worker.student)
    return found


class _Job:
    """The rehearsals of one actor: those of the students with one device, on one host."""

    def __init__(
        self, recipe: Recipe, node: str, host: Host, gpu: float, device: str, indices: Sequence[int]
    ) -> None:
        self.recipe, self.host, self.gpu, self.indices = recipe, host, gpu, indices
        self.actor = _Rehearser.options(  # type: ignore[attr-defined]
            num_cpus=0, num_gpus=gpu, scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)
        ).remote(str(Path.cwd()))
        self.started = self.actor.started.remote()
        self.refs = [self.actor.rehearse.remote(recipe, index, device, host.address) for index in indices]

    def results(self) -> list[Rehearsal]:
        """How the rehearsals ended; waits for them, unless their actor has not started."""
        limit_s = self.recipe.limits.startup_s
        names = [self.recipe.students[index].name for index in self.indices]
        if not ray.wait([self.started], timeout=0)[0]:
            why = f"not rehearsed: no worker started there within {limit_s:g} s (limits.startup_s)"
            why += f"; GPU {self.gpu:g} may be taken by others" if self.gpu else ""
            return [Rehearsal(name, self.host.address, skipped=why) for name in names]
        return [self._result(name, ref, limit_s) for name, ref in zip(names, self.refs, strict=True)]

    def _result(self, name: str, ref: ray.ObjectRef, limit_s: float) -> Rehearsal:
        try:
            found: Rehearsal = ray.get(ref, timeout=limit_s + 2 * GRACE_S)
            return found
        except RayError as error:
            return Rehearsal(
                name, self.host.address, problem=one_line(getattr(error, "cause", None) or error)
            )


@ray.remote
class _Rehearser:
    """Rehearses students on one host."""

    def __init__(self, root: str) -> None:
        # The processes of the rehearsals must not import the file that Ray runs as its workers' main module.
        vars(sys.modules["__main__"]).pop("__file__", None)
        use_root(root)

    def started(self) -> None:
        """Show by the answer that the actor has started."""

    def rehearse(self, recipe: Recipe, index: int, device: str, address: str) -> Rehearsal:
        """See `kdcl_dist.launch.preflight.rehearsal.rehearse`."""
        return rehearse(recipe, index, device, address)

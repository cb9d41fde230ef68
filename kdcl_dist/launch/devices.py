"""Which device each student of one machine gets, and which student each worker of a cluster."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from kdcl_dist.config.recipe import Recipe
from kdcl_dist.errors import RecipeError
from kdcl_dist.launch.preflight.placement import ACCELERATOR, Host, Need, assign

__all__ = ["assign_accelerators", "assign_devices"]


def assign_devices(recipe: Recipe, count: int) -> list[str]:
    """A device for each worker of the cohort: "cpu", or "cuda:N" where shares of one GPU add up to 1 at most.

    Args:
        recipe: says what share of a GPU each student takes.
        count: GPUs of this machine.

    Raises:
        RecipeError: the machine has too few GPUs.
    """
    students = [recipe.students[worker.student] for worker in recipe.workers]
    needs = [Need(student.name, 0, student.resources.gpu) for student in students]
    devices = []
    for need, slot in zip(needs, assign(needs, [Host("this machine", 0, count)]), strict=True):
        if slot is None:
            raise RecipeError(
                f"students.{need.student}.resources.gpu: {need.gpu:g} of a GPU is asked for, but this "
                f"machine has {count} GPUs, and none with so much free; set it to 0 to train on the CPU"
            )
        devices.append("cpu" if slot.gpu is None else f"cuda:{slot.gpu}")
    return devices


def assign_accelerators(needs: Sequence[Need], offered: Sequence[str | None]) -> list[int]:
    """Which worker of the cohort each worker of the cluster becomes, so that each has its accelerator type.

    Args:
        needs: of the cohort's workers.
        offered: accelerator type of each cluster worker's host, None without one.

    Returns:
        For each worker of the cluster, the index of the worker in the cohort.

    Raises:
        RecipeError: a worker of the cohort finds no worker of the cluster.
    """
    hosts = [Host(str(rank), 1, 0, {ACCELERATOR: kind} if kind else {}) for rank, kind in enumerate(offered)]
    index_of: dict[int, int] = {}
    for index, slot in enumerate(assign([replace(need, cpu=1, gpu=0) for need in needs], hosts)):
        if slot is None:
            raise RecipeError(
                f"students.{needs[index].student}.accelerator: no worker has a {needs[index].accelerator!r} "
                f"(workers have {', '.join(str(kind) for kind in offered)})"
            )
        index_of[slot.host] = index
    return [index_of[rank] for rank in range(len(offered))]

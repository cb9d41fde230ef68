"""Which device each worker of a run gets, and which student each worker of a cluster."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from kdcl_dist.config.recipe import Recipe
from kdcl_dist.config.student import Student
from kdcl_dist.errors import RecipeError
from kdcl_dist.launch.preflight.placement import ACCELERATOR, Host, Need, assign

__all__ = ["assign_accelerators", "assign_devices", "device_on_ray", "devices_on_ray", "ignored_locally"]

#: A share of a GPU below which nothing is left of it.
EPSILON = 1e-9


def assign_devices(recipe: Recipe, count: int) -> list[str]:
    """A device for each worker of the cohort on this machine: "cpu" or "cuda:N".

    Shares of one GPU add up to 1 at most. Workers of `gpu: auto` spread over what the shares leave free, and
    train on the CPU if that is nothing.

    Args:
        recipe: says what share of a GPU each student takes.
        count: GPUs of this machine.

    Raises:
        RecipeError: the machine has too few GPUs.
    """
    students = [recipe.students[worker.student] for worker in recipe.workers]
    needs = [Need(student.name, 0, student.resources.gpu_share(auto=0.0)) for student in students]
    slots = assign(needs, [Host("this machine", 0, count)])
    free = [1.0] * count
    devices = []
    for need, slot in zip(needs, slots, strict=True):
        if slot is None:
            raise RecipeError(
                f"students.{need.student}.resources.gpu: {need.gpu:g} of a GPU is asked for, but this "
                f"machine has {count} GPUs, and none with so much free; set it to 0 to train on the CPU"
            )
        devices.append("cpu" if slot.gpu is None else f"cuda:{slot.gpu}")
        if slot.gpu is not None:
            free[slot.gpu] -= need.gpu
    automatic = [index for index, student in enumerate(students) if student.resources.gpu == "auto"]
    for index, gpu in zip(automatic, _spread(len(automatic), free), strict=False):
        devices[index] = f"cuda:{gpu}"
    return devices


def _spread(workers: int, free: Sequence[float]) -> list[int]:
    """A GPU for each worker, of those with a share that is free, so that the smallest part is largest."""
    usable = [gpu for gpu, share in enumerate(free) if share > EPSILON]
    chosen: list[int] = []
    for _ in range(workers if usable else 0):
        chosen.append(max(usable, key=lambda gpu: free[gpu] / (chosen.count(gpu) + 1)))
    return chosen


def devices_on_ray(recipe: Recipe, needs: Sequence[Need]) -> list[str]:
    """The device of each worker, as `device_on_ray`, whose needs are those of `needs_of`."""
    students = [recipe.students[worker.student] for worker in recipe.workers]
    return [device_on_ray(student, need) for student, need in zip(students, needs, strict=True)]


def device_on_ray(student: Student, need: Need) -> str:
    """The device of a worker on Ray: "cpu", "cuda", or "auto" for CUDA where PyTorch can use it.

    Args:
        student: of the worker.
        need: what Ray reserves for it.
    """
    if not need.gpu:
        return "cpu"
    return "auto" if student.resources.gpu == "auto" else "cuda"


def ignored_locally(recipe: Recipe) -> list[str]:
    """A line for each accelerator type, and for the spares, of a recipe that the local launcher ignores."""
    spares = recipe.failure.spares
    lines = [
        f"failure.spares: {spares} have no effect with launcher 'local', which replaces a dead process as "
        "fast; use launcher 'ray', or set it to 0"
    ]
    return lines[: bool(spares)] + [
        f"students.{student.name}.accelerator: {student.accelerator!r} is not looked for by launcher "
        "'local'; use launcher 'ray', or set it to null"
        for student in recipe.students
        if student.accelerator is not None
    ]


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

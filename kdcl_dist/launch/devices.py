"""Which device each student of one machine gets."""

from __future__ import annotations

from collections.abc import Sequence

from kdcl_dist.config.recipe import Recipe
from kdcl_dist.errors import RecipeError

__all__ = ["assign_accelerators", "assign_devices"]


def assign_devices(recipe: Recipe, count: int) -> list[str]:
    """A device for each worker of the cohort: "cpu", or "cuda:N" where shares of one GPU add up to 1 at most.

    Args:
        recipe: says what share of a GPU each student takes.
        count: GPUs of this machine.

    Raises:
        RecipeError: the machine has too few GPUs.
    """
    used = [0.0] * count
    devices = []
    for worker in recipe.workers:
        student = recipe.students[worker.student]
        share = student.resources.gpu
        if share == 0:
            devices.append("cpu")
            continue
        free = [number for number, taken in enumerate(used) if taken + share <= 1 + 1e-9]
        if not free:
            raise RecipeError(
                f"students.{student.name}.resources.gpu: {share:g} of a GPU is asked for, but this machine "
                f"has {count} GPUs, and none with so much free; set it to 0 to train on the CPU"
            )
        used[free[0]] += share
        devices.append(f"cuda:{free[0]}")
    return devices


def assign_accelerators(wanted: Sequence[str | None], offered: Sequence[str | None]) -> list[int]:
    """Which student each worker trains, so that each gets the accelerator type it asks for.

    Args:
        wanted: accelerator type of each worker, None for any.
        offered: accelerator type of each worker's host.

    Returns:
        For each worker the worker's place in the cohort.

    Raises:
        RecipeError: no worker is left for a student.
    """
    free = list(range(len(offered)))
    student_of: dict[int, int] = {}
    for student in sorted(range(len(wanted)), key=lambda place: wanted[place] is None):
        fitting = [worker for worker in free if wanted[student] in (None, offered[worker])]
        if not fitting:
            raise RecipeError(
                f"students.{student}.accelerator: no worker has a {wanted[student]!r} "
                f"(workers have {', '.join(str(kind) for kind in offered)})"
            )
        student_of[fitting[0]] = student
        free.remove(fitting[0])
    return [student_of[worker] for worker in range(len(offered))]

"""Finding the replicas with the shortest step, by branch and bound over all choices."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

from kdcl_dist.errors import RecipeError
from kdcl_dist.planning.step_model import Prediction, StepModel

__all__ = ["check_workers", "divisors", "propose"]


def divisors(batch_size: int, most: int) -> list[int]:
    """The numbers of replicas, up to `most`, that split a batch evenly."""
    return [count for count in range(1, most + 1) if batch_size % count == 0]


def check_workers(workers: int, students: int) -> None:
    """Check that each student can have a worker; raises `RecipeError`."""
    if workers < students:
        raise RecipeError(f"--workers: {workers} cannot hold {students} students; each needs one")


def propose(model: StepModel, workers: int) -> Prediction:
    """The replicas with the shortest step within `workers` workers; among equals, the fewest replicas.

    Raises:
        RecipeError: the workers are fewer than the students, or too few for the memory of their devices.
    """
    check_workers(workers, len(model.students))
    if workers < (fewest := sum(min(student.counts) for student in model.students)):
        raise RecipeError(f"--workers: {workers} are too few for what fits the devices; {fewest} are needed")
    # The slowest student first: no choice for the others makes up for its time, so the search ends early.
    order = sorted(range(len(model.students)), key=lambda index: -model.alone_s(model.students[index], 1))
    ordered = replace(model, students=[model.students[index] for index in order])
    best = min(_search(ordered, workers), key=lambda found: found.rank)
    replicas = dict(zip(order, best.replicas, strict=True))
    return model.predict([replicas[index] for index in range(len(order))])


def _search(model: StepModel, workers: int) -> Iterator[Prediction]:
    """Predictions for choices of replicas, each better than the previous one; the last is the best."""
    most = max(max(student.counts) for student in model.students)
    best = (math.inf, 0)
    open_: list[tuple[int, ...]] = [()]
    while open_:
        chosen = open_.pop()
        left = len(model.students) - len(chosen)
        if chosen and (round(model.floor_s(chosen, most), 9), sum(chosen) + left) >= best:
            continue
        if not left:
            if (found := model.predict(chosen)).rank < best:
                best = found.rank
                yield found
            continue
        available = workers - sum(chosen) - (left - 1)
        choices = [(*chosen, count) for count in model.students[len(chosen)].counts if count <= available]
        open_ += sorted(choices, key=lambda choice: -model.floor_s(choice, most))

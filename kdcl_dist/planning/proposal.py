"""Which replicas give the shortest step: all choices, but for those that cannot beat the best found."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

from kdcl_dist.errors import RecipeError
from kdcl_dist.planning.step_model import Cohort, Prediction

__all__ = ["check_workers", "divisors", "propose"]


def divisors(batch_size: int, most: int) -> list[int]:
    """The numbers of replicas, up to `most`, that share a batch evenly."""
    return [count for count in range(1, most + 1) if batch_size % count == 0]


def check_workers(workers: int, students: int) -> None:
    """See that each student can have a worker; raises `RecipeError`."""
    if workers < students:
        raise RecipeError(f"--workers: {workers} cannot hold {students} students; each needs one")


def propose(cohort: Cohort, workers: int) -> Prediction:
    """The replicas with the shortest step within so many workers, and with the fewest workers among equals.

    Raises:
        RecipeError: there are fewer workers than students, or than their devices' memory needs.
    """
    check_workers(workers, len(cohort.students))
    if workers < (fewest := sum(min(student.counts) for student in cohort.students)):
        raise RecipeError(f"--workers: {workers} are too few for what fits the devices; {fewest} are needed")
    # The slowest student first: what it cannot reach, no choice of the others makes up for.
    order = sorted(range(len(cohort.students)), key=lambda place: -cohort.alone_s(cohort.students[place], 1))
    ordered = replace(cohort, students=[cohort.students[place] for place in order])
    best = min(_search(ordered, workers), key=lambda found: found.rank)
    replicas = dict(zip(order, best.replicas, strict=True))
    return cohort.predict([replicas[place] for place in range(len(order))])


def _search(cohort: Cohort, workers: int) -> Iterator[Prediction]:
    """Choices of replicas, each better than the one before; the last is the best of all."""
    most = max(max(student.counts) for student in cohort.students)
    best = (math.inf, 0)
    open_: list[tuple[int, ...]] = [()]
    while open_:
        chosen = open_.pop()
        left = len(cohort.students) - len(chosen)
        if chosen and (round(cohort.floor_s(chosen, most), 9), sum(chosen) + left) >= best:
            continue
        if not left:
            if (found := cohort.predict(chosen)).rank < best:
                best = found.rank
                yield found
            continue
        room = workers - sum(chosen) - (left - 1)
        choices = [(*chosen, count) for count in cohort.students[len(chosen)].counts if count <= room]
        open_ += sorted(choices, key=lambda choice: -cohort.floor_s(choice, most))

"""All figures of a recipe: given ones, and measured ones for the rest."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from kdcl_dist import models
from kdcl_dist.config.recipe import Recipe
from kdcl_dist.config.student import Student
from kdcl_dist.data.subset import open_classes
from kdcl_dist.errors import DataError
from kdcl_dist.exchange.layout import DTYPES, answer_rows
from kdcl_dist.planning.given import ENSEMBLE
from kdcl_dist.planning.measure_cores import measure_cores
from kdcl_dist.planning.measure_exchange import measure_ensemble, measure_link
from kdcl_dist.planning.measure_students import measure_student
from kdcl_dist.planning.proposal import divisors
from kdcl_dist.planning.step_model import Cohort, Cost, Figures, Link

__all__ = ["DEFAULT_ENSEMBLE_S", "DEFAULT_LINK", "Survey", "survey"]

#: Where all students' figures are given, nothing is measured: a network of 10 Gbit/s, and a usual ensemble.
DEFAULT_LINK = Link(latency_s=100e-6, bandwidth=1e9)
DEFAULT_ENSEMBLE_S = 1e-3
#: Classes and channels where figures are given and the data is not here: those of ImageNet.
ELSEWHERE = (1000, 3)

Given = Mapping[str, Mapping[int, Cost]]


@dataclass(frozen=True)
class Survey:
    """What is known of a recipe's cohort, and where it comes from, one line each."""

    recipe: Recipe
    cohort: Cohort
    notes: list[str]


def survey(
    recipe: Recipe,
    workers: int,
    given: Given,
    *,
    link: Link | None = None,
    cores: float | None = None,
    on_progress: Callable[[str], None] = lambda text: None,
) -> Survey:
    """Collect a cohort's figures; students that are not given are measured here.

    Args:
        recipe: the run.
        workers: no student can have more replicas than these leave it.
        given: of `parse_given`.
        link: between all processes. None: measured here; a usual one if nothing is measured.
        cores: CPU cores that all share. None: as many as this machine gives; no limit if
            nothing is measured.
        on_progress: hears what is measured next.

    Raises:
        KdclError: something cannot be measured.
    """
    measured = [student.name for student in recipe.students if student.name not in given]
    classes, channels, notes = _shape(recipe, needed=bool(measured))
    most = max(workers - len(recipe.students) + 1, max(student.replicas for student in recipe.students))
    students = [
        _figures(recipe, place, most, given, (classes, channels), on_progress)
        for place in range(len(recipe.names))
    ]
    ensemble_s = DEFAULT_ENSEMBLE_S
    if measured:
        on_progress("measuring the exchange, the ensemble and the cores")
        link, ensemble_s = link or measure_link(recipe), measure_ensemble(recipe, classes)
        cores = cores or measure_cores(recipe)
    if ENSEMBLE in given:
        ensemble_s = next(iter(given[ENSEMBLE].values())).total_s
    source = f"{', '.join(measured)} measured on this machine" if measured else "nothing measured here"
    notes.insert(0, f"{source}, the rest given or default")
    cohort = Cohort(
        recipe.batch_size,
        classes,
        students,
        link or DEFAULT_LINK,
        ensemble_s,
        answer_rows(recipe),
        cores or math.inf,
        DTYPES[recipe.distillation.wire_precision],
    )
    return Survey(recipe, cohort, notes)


def _shape(recipe: Recipe, *, needed: bool) -> tuple[int, int, list[str]]:
    """Classes and channels of the data, which need not be here if nothing is measured."""
    try:
        data = open_classes(recipe.data.train, recipe.data.classes)
    except DataError:
        if needed:
            raise
        classes, channels = ELSEWHERE
        return classes, channels, [f"data.train cannot be opened here: {classes} classes are assumed"]
    return len(data.classes), data.channels, []


def _figures(
    recipe: Recipe,
    place: int,
    most: int,
    given: Given,
    shape: tuple[int, int],
    on_progress: Callable[[str], None],
) -> Figures:
    student, counts = recipe.students[place], divisors(recipe.batch_size, most)
    if student.name in given:
        costs = given[student.name]
    else:
        on_progress(f"measuring {student.name}")
        # What the recipe has now goes first: it must fit the device, others may not.
        costs = measure_student(recipe, place, sorted(counts, key=lambda count: count != student.replicas))
        counts = [count for count in counts if recipe.batch_size // count in costs]
    threads = 0 if student.resources.gpu else student.resources.cpu
    return Figures(costs, threads, _gradient_bytes(recipe, student, shape), counts)


def _gradient_bytes(recipe: Recipe, student: Student, shape: tuple[int, int]) -> int:
    if recipe.is_teacher(student):
        return 0
    network = models.build(student.model, *shape)
    return sum(4 * parameter.numel() for parameter in network.parameters() if parameter.requires_grad)

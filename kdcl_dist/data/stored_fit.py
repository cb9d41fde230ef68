"""Whether files of stored logits fit the run whose members they are."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from kdcl_dist.config.recipe import Recipe
from kdcl_dist.config.student import Student
from kdcl_dist.data.dataset import fingerprint
from kdcl_dist.data.sampling import Ids, epoch_steps
from kdcl_dist.data.stored_logits import TEST_VIEW, LogitsInfo, StoredLogits
from kdcl_dist.data.training_data import TrainingData
from kdcl_dist.errors import DataError

__all__ = ["check_stored", "check_stored_data"]


def check_stored(training_data: TrainingData) -> list[str]:
    """See that each file of a recipe has what the run needs; returns a line on each.

    Raises:
        DataError: a file is damaged, is of other data, classes or views, or lacks samples.
    """
    recipe, train = training_data.recipe, training_data.train
    lines = []
    for index, path in recipe.stored.items():
        student = recipe.students[index]
        with _naming_field(student):
            found = StoredLogits(path)
        check_stored_data(student, found.info, fingerprint(train), len(train.classes))
        if tuple(found.info.classes) != tuple(train.classes):
            raise _misfit(student, "has other class names than data.train, or another order of them")
        _check_views(recipe, student, found.info)
        views = range(found.info.views) if found.info.views else [TEST_VIEW]
        ids, holdout_ids = training_data.split
        for view in views:
            if _needs(training_data, found, found.missing(ids, view), view):
                _check_ids(student, found, ids, view, "training")
        if recipe.distillation.needs_holdout:
            _check_ids(student, found, holdout_ids, TEST_VIEW, "held-out")
        with _naming_field(student):
            found.check()
        origin = found.info.source or "logits"
        lines.append(f"{student.name} is {path}: {origin}, {found.info.seen}, {len(found):,} rows")
    return lines


def check_stored_data(student: Student, info: LogitsInfo, data: str, classes: int) -> None:
    """See that a file is of a data set.

    Args:
        student: whose logits the file has.
        info: its metadata.
        data: fingerprint of the data set.
        classes: their number.

    Raises:
        DataError: it is of another one.
    """
    if len(info.classes) != classes:
        raise _misfit(student, f"has logits of {len(info.classes)} classes, and data.train has {classes}")
    if info.data != data:
        raise _misfit(
            student,
            f"has logits of another data set than data.train (fingerprint {info.data[:12]}, not {data[:12]}):"
            " write it for this one with `kdcl logits`",
        )


def _check_views(recipe: Recipe, student: Student, info: LogitsInfo) -> None:
    """With `distillation.invariant: false` all students see the same view: see that the file's are these."""
    if recipe.distillation.invariant:
        return
    # As JSON has them: arguments that Python gives may be tuples.
    augment = tuple(transform.model_dump(mode="json") for transform in recipe.data.augment)
    for field, wanted, found in (
        ("data.views", recipe.data.views, info.views),
        ("seed", recipe.seed, info.seed),
        ("data.augment", augment, info.augment),
    ):
        if wanted != found:
            raise _misfit(
                student,
                f"is of other views than distillation.invariant: false shows all students: {field} is "
                f"{_shown(wanted)}, and of the file {_shown(found)}",
            )


def _needs(training_data: TrainingData, found: StoredLogits, missing: Ids, view: int) -> bool:
    """Whether a step takes one of the samples of which a file lacks a view.

    The steps of an epoch leave out an incomplete batch: a file that a run recorded may lack these samples,
    and suits a run with the same seed and batches.
    """
    recipe, ids = training_data.recipe, training_data.split[0]
    if any(student.sees_part for student in recipe.students):
        return bool(len(missing))
    return bool(len(missing)) and any(
        np.isin(missing, epoch_steps(ids, recipe.batch_size, recipe.seed, epoch)).any()
        for epoch in range(recipe.epochs)
        if found.info.view_of(epoch) == view
    )


def _check_ids(student: Student, found: StoredLogits, ids: Ids, view: int, kind: str) -> None:
    if len(missing := np.sort(found.missing(ids, view))):
        name = "the test view" if view == TEST_VIEW else f"view {view}"
        raise _misfit(
            student,
            f"lacks {name} of {len(missing):,} of {len(ids):,} {kind} samples, the first is {missing[0]}",
        )


@contextmanager
def _naming_field(student: Student) -> Iterator[None]:
    """Prefix errors of a file with the field of the recipe that names it."""
    try:
        yield
    except DataError as error:
        raise DataError(f"students.{student.name}.logits: {error.message}") from error


def _misfit(student: Student, reason: str) -> DataError:
    return DataError(f"students.{student.name}.logits: {student.logits!r} {reason}")


def _shown(value: object) -> str:
    return "null" if value is None else str(list(value) if isinstance(value, tuple) else value)

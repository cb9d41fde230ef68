"""A few samples of a run, as its students see them, on which what they are to train with is tried.

Shapes: B batch.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from torch import Tensor

from kdcl_dist.config.rounds import share_of
from kdcl_dist.data.first_images import check_views
from kdcl_dist.data.first_samples import check_finite
from kdcl_dist.data.loader import Batch, batches
from kdcl_dist.data.sample_views import AnyViews, SampleViews
from kdcl_dist.data.samples import Inputs, named, repeated
from kdcl_dist.data.sampling import Ids, batches_of
from kdcl_dist.data.training_data import TrainingData, naming_field

__all__ = ["first_test_views", "first_views", "probes"]


def first_views(training_data: TrainingData, index: int, count: int) -> Batch:
    """The first few training samples, as a student sees them in training.

    Args:
        training_data: of the run.
        index: of the student in the recipe.
        count: of the samples.

    Raises:
        DataError: a transform fails, or `check_views` or `check_finite` refuses what it gives.
    """
    recipe, student = training_data.recipe, training_data.recipe.students[index]
    views = training_data.views(training_data.train, recipe.augment_of(student), recipe.seed)
    ids_B = training_data.own[index][:count]
    return _checked_batch(training_data.augment_field(index), views, ids_B, student.name)


def first_test_views(training_data: TrainingData, count: int) -> Batch:
    """The first few test samples, as all students see them; errors as `first_views`."""
    test = training_data.test
    return _checked_batch("data.test_view", training_data.test_views(test), np.arange(len(test))[:count])


def probes(training_data: TrainingData, index: int) -> Iterator[tuple[str, Inputs]]:
    """Samples of test and held-out batches, in each number that a worker of a student gets.

    They are the ends of the first and the last batch, and of others where the shape is a new one, repeated to
    the batch's size. Each comes with a text that says where it is from.

    Args:
        training_data: of the run.
        index: of the student in the recipe.

    Raises:
        DataError: as `first_views`.
    """
    recipe, seen = training_data.recipe, set[tuple[tuple[int, ...], ...]]()
    replicas = recipe.students[index].replicas
    for field, parts, views in _passes(training_data):
        evenly = np.linspace(0, len(parts) - 1, min(len(parts), 4))  # none of no parts
        for number in np.unique(evenly.round().astype(int)).tolist():
            ends_B = np.unique(parts[number][[0, -1]])
            inputs = _checked_batch("data.test_view", views, ends_B).inputs
            shapes = tuple(tuple(tensor.shape[1:]) for tensor in named(inputs).values())
            if shapes in seen and number not in (0, len(parts) - 1):
                continue
            seen.add(shapes)
            where, rows = f"batch {number + 1} of {len(parts)} of {field}", len(parts[number])
            for size in sorted({share_of(rows, replica, replicas) for replica in range(replicas)} - {0}):
                yield where, repeated(inputs, size)


def _passes(training_data: TrainingData) -> Iterator[tuple[str, list[Ids], AnyViews]]:
    """The field of each set of samples of which a run makes passes, the batches' ids, and the views."""
    holdout_ids = training_data.split[1][: None if training_data.schedule.holdout_batches else 0]
    val_field = "data.val_fraction" if training_data.val is None else "data.val"
    for field, dataset, ids in (
        ("data.test", training_data.test, np.arange(len(training_data.test))),
        (val_field, *training_data.validation),
        ("data.holdout_per_class", training_data.train, holdout_ids),
    ):
        parts = batches_of(ids, training_data.recipe.part_size)
        yield field, parts, training_data.test_views(dataset)


def _checked_batch(field: str, views: AnyViews, ids_B: Ids, student: str | None = None) -> Batch:
    """One batch of views that `check_views` or `check_finite` has seen."""
    with naming_field(field):
        inputs = views.batch(0, ids_B)
    if isinstance(views, SampleViews):
        check_finite(f"{field}: the first batch", inputs, student)
    else:
        assert isinstance(inputs, Tensor)
        check_views(field, inputs, views.dataset.channels, student)
    return next(batches(views, [(0, ids_B)]))

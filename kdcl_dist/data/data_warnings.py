"""Warnings of settings that a run's data makes ineffective, and of views that look wrong."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from kdcl_dist.config.recipe import Recipe
from kdcl_dist.data.dataset import ImageDataset
from kdcl_dist.data.loader import Batch
from kdcl_dist.data.probes import first_test_views, first_views
from kdcl_dist.data.samples import named
from kdcl_dist.data.sampling import epoch_steps
from kdcl_dist.data.training_data import TrainingData
from kdcl_dist.utils.random_state import random_state_kept

__all__ = ["data_warnings"]

#: Samples whose views are looked at.
SEEN = 16
#: A usual deviation of normalised numbers lies between these.
SMALL, LARGE = 0.05, 20.0


def data_warnings(training_data: TrainingData) -> list[str]:
    """Settings that are allowed but hardly intended, one line each.

    Raises:
        DataError: as `kdcl_dist.data.probes.first_views`.
    """
    window, steps = training_data.recipe.distillation.window, training_data.schedule.steps_per_epoch
    found = []
    if isinstance(window, int) and window > max(1, steps):
        found.append(f"distillation.window: an epoch has {steps} steps, so {window} is as much as 'epoch'")
    found += _of_recording(training_data)
    with random_state_kept():
        of_images = isinstance(training_data.train, ImageDataset)
        return found + (_of_views if of_images else _of_samples)(training_data)


def _of_recording(training_data: TrainingData) -> list[str]:
    """Views that no step shows, of which `distillation.record_logits` finds no logits."""
    recipe, (ids, _) = training_data.recipe, training_data.split
    if (asked := recipe.distillation.record_logits) is None or (views := recipe.data.views) is None:
        return []
    whose: dict[range, list[str]] = {}
    for name in asked.students:
        whose.setdefault(_epochs_with(recipe, name), []).append(name)
    counts = {epochs: _unseen(training_data, epochs, views) for epochs in whose}
    return [
        f"distillation.record_logits: no epoch{' of ' + ', '.join(whose[epochs]) if len(whose) > 1 else ''} "
        f"shows {count:,} of the {len(ids) * views:,} views of samples, and the files will lack them: "
        f"{len(epochs)} epochs have {views} views, each epoch without the {len(ids) % recipe.batch_size} "
        "samples of an incomplete batch; more epochs show more"
        for epochs, count in counts.items()
        if count
    ]


def _epochs_with(recipe: Recipe, name: str) -> range:
    """The epochs, from 0, in which a student, or the ensemble, takes part."""
    if name not in recipe.names:
        return range(recipe.epochs)
    student = recipe.students[recipe.names.index(name)]
    return range(student.from_epoch - 1, student.until_epoch or recipe.epochs)


def _unseen(training_data: TrainingData, epochs: range, views: int) -> int:
    """How many of the views of training samples no step of some epochs shows."""
    recipe, (ids, _) = training_data.recipe, training_data.split
    unseen = [ids] * views
    for epoch in reversed(epochs):
        if not any(map(len, unseen)):
            break
        view = recipe.data.view_of(epoch)
        if len(unseen[view]):
            shown = epoch_steps(ids, recipe.batch_size, recipe.seed, epoch)
            unseen[view] = np.setdiff1d(unseen[view], shown)
    return sum(map(len, unseen))


def _of_views(training_data: TrainingData) -> list[str]:
    tested = tuple(_images(first_test_views(training_data, SEEN)).shape[1:])
    found = {}
    for index, field in _fields(training_data).items():
        images_BCHW = _images(first_views(training_data, index, SEEN))
        deviation, shape = float(images_BCHW.std()), tuple(images_BCHW.shape[1:])
        found[field] = [
            f"{field}: the first images have deviation {deviation:.3g} after normalisation, where 1 is "
            "usual: do the data set's mean and std fit its pixels?"
        ] * (not SMALL <= deviation <= LARGE) + [
            f"{field} gives images of shape {shape}, data.test_view of shape {tested}"
        ] * (shape != tested)
    return [line for lines in found.values() for line in lines]


def _of_samples(training_data: TrainingData) -> list[str]:
    """Numbers of samples that are no images, far from those that networks usually learn from."""
    first_test_views(training_data, SEEN)
    lines = []
    for index, field in _fields(training_data).items():
        for name, tensor in named(first_views(training_data, index, SEEN).inputs).items():
            deviation = float(tensor.double().std()) if tensor.is_floating_point() else 1.0
            if not SMALL <= deviation <= LARGE:
                lines.append(
                    f"{field}: {name!r} of the first samples has deviation {deviation:.3g}, where 1 is "
                    "usual: data.normalise: true gives that"
                )
    return lines


def _fields(training_data: TrainingData) -> dict[int, str]:
    """Each field that has transforms of training views, by the first student that has them."""
    fields: dict[str, int] = {}
    for index in training_data.recipe.networks:
        fields.setdefault(training_data.augment_field(index), index)
    return {index: field for field, index in fields.items()}


def _images(batch: Batch) -> Tensor:
    assert isinstance(batch.inputs, Tensor)
    return batch.inputs

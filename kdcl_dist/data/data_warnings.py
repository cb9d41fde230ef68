"""Warnings of settings that a run's data makes ineffective, and of views that look wrong."""

from __future__ import annotations

from kdcl_dist.data.training_data import TrainingData
from kdcl_dist.utils.random_state import random_state_kept

__all__ = ["data_warnings"]

#: Samples whose views are looked at.
SEEN = 16
#: A usual deviation of normalised images lies between these.
SMALL, LARGE = 0.05, 20.0


def data_warnings(training_data: TrainingData) -> list[str]:
    """Settings that are allowed but hardly intended, one line each.

    Raises:
        DataError: as `TrainingData.first_views`.
    """
    window, steps = training_data.recipe.distillation.window, training_data.schedule.steps_per_epoch
    found = []
    if isinstance(window, int) and window > max(1, steps):
        found.append(f"distillation.window: an epoch has {steps} steps, so {window} is as much as 'epoch'")
    with random_state_kept():
        return found + _of_views(training_data)


def _of_views(training_data: TrainingData) -> list[str]:
    tested = tuple(training_data.first_test_views(SEEN).inputs.shape[1:])
    found = {}
    for index in range(len(training_data.recipe.students)):
        field = training_data.augment_field(index)
        if field in found:
            continue
        images_BCHW = training_data.first_views(index, SEEN).inputs
        deviation, shape = float(images_BCHW.std()), tuple(images_BCHW.shape[1:])
        found[field] = [
            f"{field}: the first images have deviation {deviation:.3g} after normalisation, where 1 is "
            "usual: do the data set's mean and std fit its pixels?"
        ] * (not SMALL <= deviation <= LARGE) + [
            f"{field} gives images of shape {shape}, data.test_view of shape {tested}"
        ] * (shape != tested)
    return [line for lines in found.values() for line in lines]

"""The training samples of each student, all of the run or those of `students.N.data`, and their order.

Shapes: N samples, T steps of an epoch, P parts of steps, B samples of a part.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from kdcl_dist.config.own_data import OwnData
from kdcl_dist.config.recipe import Recipe
from kdcl_dist.data.dataset import Dataset
from kdcl_dist.data.sampling import (
    Ids,
    class_parts,
    epoch_steps,
    own_passes,
    own_steps,
    student_seed,
)
from kdcl_dist.errors import DataError

__all__ = ["own_parts", "own_samples"]


def own_samples(recipe: Recipe, dataset: Dataset, train_ids: Ids) -> list[Ids]:
    """The ids of the training samples from which each student learns, ascending.

    Args:
        recipe: the run.
        dataset: the training set.
        train_ids: the run's training samples.

    Raises:
        DataError: a class is none of the data, a student has too few samples, or none of its samples is seen
            by a student that could teach it.
    """
    found = []
    for index, student in enumerate(recipe.students):
        own = train_ids
        if student.data is not None:
            seed = student_seed(recipe.seed, index, student.seed) if student.data.is_drawn else recipe.seed
            field = f"students.{student.name}.data"
            own = _chosen(student.data, field, dataset, train_ids, seed)
            if len(own) < (needed := recipe.batch_size if student.sees_part else 1):
                raise DataError(
                    f"{field}: these are {len(own)} samples, and a step takes {needed}: raise share, or "
                    "lower batch_size"
                )
        found.append(own)
    if recipe.distillation.sends_target:
        _check_teaching(recipe, found, train_ids)
    return found


def own_parts(
    recipe: Recipe, index: int, train_ids: Ids, own_ids: Ids, per_epoch: int, start: int
) -> Iterator[tuple[int, Ids]]:
    """The epoch and one student's sample ids of each training round, from the first of a global step on.

    A part of a step has the same samples for all students, as a step without parts, unless the student has
    samples of its own.

    Args:
        recipe: the run.
        index: the student's index in the recipe.
        train_ids: the run's training samples.
        own_ids: those of the student.
        per_epoch: steps of an epoch.
        start: the global step.
    """
    student, window = recipe.students[index], recipe.distillation.window
    seed = student_seed(recipe.seed, index, student.seed)
    width = per_epoch if window == "epoch" else window
    for epoch in range(start // per_epoch, recipe.epochs):
        first = max(0, start - epoch * per_epoch)
        if student.sees_part:
            rounds = own_passes(own_ids, per_epoch, recipe.batch_size, seed, epoch, first)
        else:
            steps_TB = epoch_steps(train_ids, recipe.batch_size, recipe.seed, epoch)
            parts_PB = steps_TB.reshape(-1, recipe.part_size)
            rounds = own_steps(parts_PB, width, seed, epoch, first * recipe.accumulate)
        for ids_B in rounds:
            yield epoch, ids_B


def _chosen(chosen: OwnData, field: str, dataset: Dataset, train_ids: Ids, seed: int) -> Ids:
    labels_N = np.asarray(dataset.labels, np.int64)[train_ids]
    names = list(dataset.classes)
    if unknown := [name for name in chosen.classes or () if name not in names]:
        shown = ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
        raise DataError(f"{field}.classes: {unknown[0]} is no class of the data (it has {shown})")
    taken_N = class_parts(labels_N, *chosen.ends, seed)
    if chosen.classes is not None:
        taken_N = taken_N[np.isin(labels_N[taken_N], [names.index(name) for name in chosen.classes])]
    own: Ids = train_ids[taken_N]
    return own


def _check_teaching(recipe: Recipe, own: Sequence[Ids], train_ids: Ids) -> None:
    """See that of each student that learns another sees a sample, a teacher if there are such."""
    teachers = recipe.distillation.teachers or recipe.names
    seen = [ids if s.sees_part else train_ids for s, ids in zip(recipe.students, own, strict=True)]
    for index, student in enumerate(recipe.students):
        if student.data is None or recipe.is_frozen(student):
            continue
        others = [ids for i, ids in enumerate(seen) if i != index and recipe.names[i] in teachers]
        if not any(np.isin(own[index], ids).any() for ids in others):
            raise DataError(
                f"students.{student.name}.data: no student that could teach it sees any of its "
                f"{len(own[index])} samples: let their samples overlap, add a student that sees all, or set "
                "data.sees to all"
            )

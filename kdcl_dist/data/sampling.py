"""The samples of each step, their order and the seeds of their views: pure functions of the recipe.

A change of any function changes all results; tests freeze the values.

Shapes: N samples, T steps of an epoch, W steps of a window, B samples of a step.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from kdcl_dist.config.rounds import share_of
from kdcl_dist.errors import DataError
from kdcl_dist.utils.seeding import Purpose, derive, permutation

__all__ = [
    "Ids",
    "batches_of",
    "class_parts",
    "epoch_steps",
    "own_order",
    "own_passes",
    "own_steps",
    "replica_share",
    "split_holdout",
    "split_samples",
    "split_validation",
    "student_seed",
    "subset",
    "view_seed",
]

Ids = npt.NDArray[np.int64]


def split_holdout(labels_N: Ids, per_class: int, seed: int) -> tuple[Ids, Ids]:
    """Split the sample ids into training ids and held-out ids, both ascending.

    Raises:
        DataError: a class has too few samples: at least one must remain for training.
    """
    held_out: list[Ids] = []
    for label, count in zip(*np.unique(labels_N, return_counts=True), strict=True):
        if per_class >= count:
            raise DataError(
                f"data.holdout_per_class is {per_class}, but class {int(label)} has only {int(count)} "
                "training samples, and at least one must remain to train on"
            )
        order = permutation(int(count), seed, Purpose.HOLDOUT, int(label))
        held_out.append(np.flatnonzero(labels_N == label)[order[:per_class]])
    holdout_ids = np.sort(np.concatenate(held_out))
    return np.setdiff1d(np.arange(len(labels_N)), holdout_ids), holdout_ids


def split_validation(labels_N: Ids, fraction: float, seed: int) -> tuple[Ids, Ids]:
    """Split the sample ids into training ids and validation ids, both ascending.

    Each class gives the same share of its samples, rounded, and keeps at least one.

    Raises:
        DataError: the share is less than one sample of every class.
    """
    taken: list[Ids] = []
    for label, count in zip(*np.unique(labels_N, return_counts=True), strict=True):
        order = permutation(int(count), seed, Purpose.VALIDATION, int(label))
        share = min(int(count) - 1, math.floor(fraction * int(count) + 0.5))
        taken.append(np.flatnonzero(labels_N == label)[order[:share]])
    val_ids = np.sort(np.concatenate(taken))
    if not len(val_ids):
        raise DataError(
            f"data.val_fraction is {fraction:g}, which is less than one sample of each of the {len(taken)} "
            f"classes ({len(labels_N)} samples in all): raise it, or set data.val"
        )
    return np.setdiff1d(np.arange(len(labels_N)), val_ids), val_ids


def subset(labels_N: Ids, per_class: int | None, seed: int) -> Ids:
    """As many sample ids of each class, ascending; None: all. Subsets of a seed are nested.

    Raises:
        DataError: a class has too few samples.
    """
    if per_class is None:
        return np.arange(len(labels_N))
    taken: list[Ids] = []
    for label, count in zip(*np.unique(labels_N, return_counts=True), strict=True):
        if per_class > count:
            raise DataError(
                f"data.train_per_class is {per_class}, but class {int(label)} has only {int(count)} training "
                "samples: lower it, or leave it out for all samples"
            )
        order = permutation(int(count), seed, Purpose.SUBSET, int(label))
        taken.append(np.flatnonzero(labels_N == label)[order[:per_class]])
    return np.sort(np.concatenate(taken))


def class_parts(labels_N: Ids, low: float, high: float, seed: int) -> Ids:
    """The positions of a part of each class's samples, from one share to another, ascending.

    The seed draws the order of each class's samples, so parts that adjoin have no sample in common, and
    parts from 0 to 1 have all.
    """
    taken = [np.empty(0, np.int64)]
    for label, count in zip(*np.unique(labels_N, return_counts=True), strict=True):
        order = permutation(int(count), seed, Purpose.SHARE, int(label))
        first, end = (math.floor(share * int(count) + 0.5) for share in (low, high))
        taken.append(np.flatnonzero(labels_N == label)[order[first:end]])
    return np.sort(np.concatenate(taken))


def split_samples(
    labels_N: Ids, per_class: int, val_fraction: float | None, seed: int, train_per_class: int | None = None
) -> tuple[Ids, Ids, Ids]:
    """Training ids, held-out ids and validation ids, all ascending; validation samples are taken first.

    Args:
        labels_N: of the training set.
        per_class: held-out samples of each class.
        val_fraction: share of each class for validation. None: no such samples.
        seed: of the run.
        train_per_class: samples of each class that are used at all. None: all.

    Raises:
        DataError: as `subset`, `split_validation` and `split_holdout`.
    """
    used = subset(labels_N, train_per_class, seed)
    rest, val = np.arange(len(used)), np.empty(0, np.int64)
    if val_fraction is not None:
        rest, val = split_validation(labels_N[used], val_fraction, seed)
    train, holdout = split_holdout(labels_N[used[rest]], per_class, seed)
    return used[rest[train]], used[rest[holdout]], used[val]


def epoch_steps(train_ids: Ids, batch_size: int, seed: int, epoch: int) -> Ids:
    """The sample ids of each step of an epoch, (T, B), the same for every student.

    An incomplete last batch is dropped.

    Raises:
        DataError: there are fewer samples than a batch holds.
    """
    steps = len(train_ids) // batch_size
    if steps == 0:
        raise DataError(
            f"batch_size is {batch_size}, but there are only {len(train_ids)} samples to train on"
        )
    order = permutation(len(train_ids), seed, Purpose.EPOCH_ORDER, epoch)
    return train_ids[order[: steps * batch_size]].reshape(steps, batch_size)


def own_order(ids: Ids, student: int, epoch: int, window: int) -> Ids:
    """One student's order of the samples of a window.

    Args:
        ids: samples of the window: of one step, of several, or of the whole epoch.
        student: the student's seed.
        epoch, window: number of the epoch, and of the window within it, from 0.
    """
    return ids[permutation(len(ids), student, Purpose.WINDOW_ORDER, epoch, window)]


def own_steps(steps_TB: Ids, width: int, student: int, epoch: int, start: int = 0) -> Iterator[Ids]:
    """The sample ids, (B,) each, of one student's steps of an epoch, from the step `start` on.

    All students have the same samples in a window of `width` steps; each student shuffles them on its own.
    The last window of an epoch may be shorter.
    """
    for window in range(start // width, -(-len(steps_TB) // width)):
        first = window * width
        shared_WB = steps_TB[first : first + width]
        own_WB = own_order(shared_WB.ravel(), student, epoch, window).reshape(shared_WB.shape)
        yield from own_WB[max(0, start - first) :]


def own_passes(
    own_ids: Ids, steps: int, batch_size: int, student: int, epoch: int, start: int = 0
) -> Iterator[Ids]:
    """The sample ids, (B,) each, of one student's steps of an epoch, of samples that it alone may have.

    The student passes through its samples as often as the steps need, each time in another order. The last
    batch of a pass is dropped if it is incomplete, and the last pass of an epoch is cut.

    Args:
        own_ids: the samples, as many as a batch at least.
        steps: T.
        batch_size: B.
        student: the student's seed.
        epoch: number of the epoch, from 0.
        start: the first step, within the epoch.
    """
    batches = len(own_ids) // batch_size
    for number in range(start // batches, -(-steps // batches)):
        order = own_order(own_ids, student, epoch, number)
        rows_TB = order[: batches * batch_size].reshape(batches, batch_size)
        first = number * batches
        yield from rows_TB[max(0, start - first) : steps - first]


def student_seed(seed: int, index: int, own: int | None) -> int:
    """The seed of all that is random for one student: from its `seed` in the recipe, else from its index."""
    if own is not None:
        return derive(own, Purpose.STUDENT_WITH_OWN_SEED)
    return derive(seed, Purpose.STUDENT, index)


def view_seed(student: int, epoch: int, sample_id: int) -> int:
    """The seed of one student's view of one sample in one epoch; `student` is the student's seed."""
    return derive(student, Purpose.VIEW, epoch, sample_id)


def batches_of(ids: Ids, batch_size: int) -> list[Ids]:
    """All ids once, in order, in batches of at most `batch_size`."""
    return [ids[start : start + batch_size] for start in range(0, len(ids), batch_size)]


def replica_share(ids_B: Ids, replica: int, replicas: int) -> Ids:
    """One replica's rows of a batch, as many as `share_of` gives; none if the batch is too small."""
    start = sum(share_of(len(ids_B), earlier, replicas) for earlier in range(replica))
    return ids_B[start : start + share_of(len(ids_B), replica, replicas)]

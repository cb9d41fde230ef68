"""Which samples when, in which order, seen how: pure functions of the recipe.

Changing any of them changes everyone's results; the tests hold their values fixed.

Shapes: N samples, T steps of an epoch, W steps of a window, B samples of a step.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from kdcl_dist.errors import DataError
from kdcl_dist.utils.seeding import Purpose, derive, permutation

__all__ = [
    "batches_of",
    "epoch_steps",
    "own_order",
    "own_steps",
    "split_holdout",
    "student_seed",
    "view_seed",
]

Ids = npt.NDArray[np.int64]


def split_holdout(labels_N: Ids, per_class: int, seed: int) -> tuple[Ids, Ids]:
    """Part the sample ids into those trained on and those held out, both ascending.

    Raises:
        DataError: a class has too few samples to leave one to train on.
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


def epoch_steps(train_ids: Ids, batch_size: int, seed: int, epoch: int) -> Ids:
    """The sample ids of each step of an epoch, (T, B), the same for every student.

    An incomplete last batch is dropped.

    Raises:
        DataError: there are fewer samples than one batch takes.
    """
    steps = len(train_ids) // batch_size
    if steps == 0:
        raise DataError(
            f"batch_size is {batch_size}, but there are only {len(train_ids)} samples to train on"
        )
    order = permutation(len(train_ids), seed, Purpose.EPOCH_ORDER, epoch)
    return train_ids[order[: steps * batch_size]].reshape(steps, batch_size)


def own_order(ids: Ids, student: int, epoch: int, window: int) -> Ids:
    """One student's own order of the samples of a window, the epoch's `window`-th from 0.

    `student` is its seed. A window is one step, several, or the whole epoch.
    """
    return ids[permutation(len(ids), student, Purpose.WINDOW_ORDER, epoch, window)]


def own_steps(steps_TB: Ids, width: int, student: int, epoch: int, start: int = 0) -> Iterator[Ids]:
    """The sample ids, (B,) each, of one student's steps of an epoch from the step `start` on.

    Within each window of `width` steps the student walks its own shuffle of the samples that all students
    have there; the last window of an epoch may be shorter.
    """
    for window in range(start // width, -(-len(steps_TB) // width)):
        first = window * width
        shared_WB = steps_TB[first : first + width]
        own_WB = own_order(shared_WB.ravel(), student, epoch, window).reshape(shared_WB.shape)
        yield from own_WB[max(0, start - first) :]


def student_seed(seed: int, index: int, own: int | None) -> int:
    """The seed of all that is a student's own: its recipe's `seed`, or one from its place in the cohort."""
    if own is not None:
        return derive(own, Purpose.STUDENT_WITH_OWN_SEED)
    return derive(seed, Purpose.STUDENT, index)


def view_seed(student: int, epoch: int, sample_id: int) -> int:
    """The seed of one student's view of one sample in one epoch; `student` is its seed."""
    return derive(student, Purpose.VIEW, epoch, sample_id)


def batches_of(ids: Ids, batch_size: int) -> list[Ids]:
    """All ids once, in order, in batches of at most `batch_size`."""
    return [ids[start : start + batch_size] for start in range(0, len(ids), batch_size)]

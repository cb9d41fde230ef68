"""Which samples when, in which order, seen how: pure functions of the recipe.

Changing any of them changes everyone's results; the tests hold their values fixed.

Shapes: N samples, T steps of an epoch, B samples of a step.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from kdcl_dist.errors import DataError
from kdcl_dist.seeding import Purpose, derive, permutation

__all__ = ["batches_of", "epoch_steps", "own_order", "split_holdout", "student_seed", "view_seed"]

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


def own_order(ids_B: Ids, student: int, epoch: int, step: int) -> Ids:
    """One student's own order of a step's samples; `student` is its seed."""
    return ids_B[permutation(len(ids_B), student, Purpose.STEP_ORDER, epoch, step)]


def student_seed(seed: int, index: int, own: int | None) -> int:
    """The seed of all that is a student's own: its recipe's `seed`, or one from its place in the cast."""
    if own is not None:
        return derive(own, Purpose.STUDENT_WITH_OWN_SEED)
    return derive(seed, Purpose.STUDENT, index)


def view_seed(student: int, epoch: int, sample_id: int) -> int:
    """The seed of one student's view of one sample in one epoch; `student` is its seed."""
    return derive(student, Purpose.VIEW, epoch, sample_id)


def batches_of(ids: Ids, batch_size: int) -> list[Ids]:
    """All ids once, in order, in batches of at most `batch_size`."""
    return [ids[start : start + batch_size] for start in range(0, len(ids), batch_size)]

"""All students' logits on the same samples: those of one step, or with a logit bank the latest of each.

Shapes: S students, B samples, C classes.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from kdcl_dist.coordinator.logit_bank import LogitBank
from kdcl_dist.errors import LabelMismatch, MisalignedIds
from kdcl_dist.exchange.alignment import find_rows, rows_of
from kdcl_dist.exchange.message import Contribution

__all__ = ["Aligned", "Arrivals", "align", "non_finite", "recall"]

Ids = npt.NDArray[np.int64]


class Aligned(NamedTuple):
    """All students' logits on the same samples: ids_B ascending, labels_B, logits_SBC.

    labels: where samples are mixed, class probabilities (B, C).

    age: age_SB, steps since each student sent its logits of a sample; -1 where there are none, and the
    logits mean nothing. None where all logits are of this step. bad: students whose logits of this step are
    not finite, which are left out.
    """

    ids: Tensor
    labels: Tensor
    logits: Tensor
    age: Tensor | None = None
    bad: tuple[int, ...] = ()

    def at(self, rows_B: Tensor) -> Aligned:
        """Some of the samples."""
        age = None if self.age is None else self.age[:, rows_B]
        return Aligned(self.ids[rows_B], self.labels[rows_B], self.logits[:, rows_B], age, self.bad)

    def of(self, students: Sequence[int]) -> Aligned:
        """The same samples, with the logits of some students only."""
        if self.age is None or len(students) == len(self.age):
            return self
        age_SB = torch.full_like(self.age, -1)
        age_SB[list(students)] = self.age[list(students)]
        return self._replace(age=age_SB)

    def present(self, student: int) -> Aligned:
        """The samples of which a student has logits."""
        return self if self.age is None else self.at(self.age[student] >= 0)

    def current(self) -> Aligned:
        """The same without ages, where all logits are of this step and none are left out."""
        return self if self.bad or self.age is None or bool(self.age.any()) else self._replace(age=None)

    @property
    def there(self) -> Tensor:
        """Whether each student has logits of any of the samples, (S,)."""
        if self.age is None:
            return torch.ones(len(self.logits), dtype=torch.bool)
        return (self.age >= 0).any(dim=1)

    def complete(self, there_S: Tensor) -> Aligned:
        """The samples of which all of some students have logits."""
        return self if self.age is None else self.at((self.age[there_S] >= 0).all(dim=0))

    def covered(self, teachers: Sequence[int]) -> Aligned:
        """The samples that can have a soft target.

        Args:
            teachers: indices of the students that alone give the target. Without: at least two students must
                have logits of a sample, so that each has a peer's.
        """
        if self.age is None:
            return self
        present_SB = self.age >= 0
        return self.at(present_SB[list(teachers)].any(dim=0) if teachers else present_SB.sum(dim=0) > 1)


class _Sorted(NamedTuple):
    """One student's ids and labels in ascending order of the ids, and whether its logits are finite."""

    ids: Ids
    labels: Ids
    finite: bool


class Arrivals:
    """The rows of one round in ascending order of ids, brought into it while other messages are awaited.

    Args:
        students: S, of the cohort.
        bad: students of whose logits some that are not among these rows are not finite.
    """

    def __init__(self, students: int, bad: Collection[int] = ()) -> None:
        self.students, self.bad = students, set(bad)
        self.sorted: dict[int, _Sorted] = {}
        self.logits_SBC = torch.empty(0)

    def add(self, index: int, part: Contribution) -> None:
        """Add a student's rows; those that are not as many as the first student's have no logits here."""
        ids_B = part.ids.numpy()
        rows_B = ids_B.argsort()
        if not self.sorted:
            self.logits_SBC = torch.zeros(self.students, *part.logits.shape)
        if self.logits_SBC.shape[1:] == part.logits.shape:
            out_BC = self.logits_SBC[index]
            torch.index_select(part.logits.float(), 0, torch.from_numpy(rows_B), out=out_BC)
        self.sorted[index] = _Sorted(ids_B[rows_B], part.labels.numpy()[rows_B], part.is_finite)

    def agree(self) -> bool:
        """Whether all students have the same samples, each once."""
        first, *others = (own.ids for own in self.sorted.values())
        return all(np.array_equal(first, ids) for ids in others) and bool((first[1:] != first[:-1]).all())


def align(
    parts: Sequence[Contribution],
    present: Sequence[int],
    names: Sequence[str],
    arrivals: Arrivals | None = None,
) -> Aligned:
    """Bring one step's rows into one order, that of ascending sample ids.

    Args:
        parts: each student's rows.
        present: indices of the students that take part.
        names: the students, as an error names them.
        arrivals: of some of these rows; None: of none. All are added.

    Raises:
        MisalignedIds, LabelMismatch: a student has other samples or labels than most.
    """
    arrivals = arrivals or Arrivals(len(parts))
    for index in present:
        if index not in arrivals.sorted:
            arrivals.add(index, parts[index])
    found = [arrivals.sorted[index] for index in present]
    if not arrivals.agree():
        ids_B = torch.from_numpy(_most_common([own.ids for own in found]))
        parts = [_at(part, ids_B, name) for part, name in zip(parts, names, strict=True)]
        return align(parts, present, names, Arrivals(len(parts), arrivals.bad))
    ids_B, logits_SBC = torch.from_numpy(found[0].ids), arrivals.logits_SBC
    labels_B = _agreed_labels(ids_B, [own.labels for own in found], [names[index] for index in present])
    bad = tuple(i for i in present if i in arrivals.bad or not arrivals.sorted[i].finite)
    if not bad and len(present) == len(parts):
        return Aligned(ids_B, labels_B, logits_SBC)
    if bad:  # rows that are not finite count as no opinion for every reader
        logits_SBC[~torch.isfinite(logits_SBC).all(dim=2)] = 0
    sound = [index for index in present if index not in bad] or list(present)
    age_SB = torch.full(logits_SBC.shape[:2], -1)
    age_SB[sound] = 0
    return Aligned(ids_B, labels_B, logits_SBC, age_SB, bad)


def recall(
    bank: LogitBank, parts: Sequence[Contribution], present: Sequence[int], names: Sequence[str], step: int
) -> Aligned:
    """Store one step's logits in the bank; returns the latest logits of its samples, this step's unrounded.

    Args:
        bank: of all students.
        parts, present, names: as `align`.
        step: the global step.

    Raises:
        MisalignedIds, LabelMismatch: a student has a sample twice or one that does not exist, or another
            label than before.
    """
    for index in present:
        _check_rows(bank, parts[index], names[index])
    bad = non_finite(parts)
    sound = [index for index in present if index not in bad]
    for index in sound:
        bank.put(index, parts[index].ids, parts[index].logits, step)
    ids_B = torch.unique(torch.cat([part.ids for part in parts]))
    logits_SBC, age_SB = bank.latest(ids_B, step)
    labels_B = torch.empty_like(ids_B)
    for index in present:
        row_B = torch.searchsorted(ids_B, parts[index].ids)
        labels_B[row_B] = parts[index].labels
        if index in sound:
            logits_SBC[index, row_B] = parts[index].logits.float()
    return Aligned(ids_B, labels_B, logits_SBC, age_SB, bad)


def non_finite(parts: Sequence[Contribution]) -> tuple[int, ...]:
    """The students whose logits are not all finite."""
    return tuple(index for index, part in enumerate(parts) if not part.is_finite)


def _at(part: Contribution, ids_B: Tensor, name: str) -> Contribution:
    """A student's rows of these samples; no rows for an absent student."""
    if not len(part.ids):
        return part
    try:
        rows_B = rows_of(ids_B, part.ids)
    except MisalignedIds as error:
        error.message = f"sends other samples than the rest of the cohort: {error.message}"
        raise error.at(student=name) from None
    return Contribution(*(column[rows_B] for column in part))


def _agreed_labels(ids_B: Tensor, labels: Sequence[Ids], names: Sequence[str]) -> Tensor:
    if all(np.array_equal(own, labels[0]) for own in labels):
        return torch.from_numpy(labels[0])
    labels_SB = torch.from_numpy(np.stack(labels))
    labels_B = torch.mode(labels_SB, dim=0).values
    student, row = (labels_SB != labels_B).nonzero()[0].tolist()
    raise LabelMismatch(
        f"has label {int(labels_SB[student, row])} for sample {int(ids_B[row])}, where the "
        f"rest of the cohort has {int(labels_B[row])}: do all read the same data?",
        student=names[student],
    )


def _check_rows(bank: LogitBank, part: Contribution, name: str) -> None:
    """See that one student's rows are of existing samples, of each once, and with the label known so far."""
    low, high = int(part.ids.min()), int(part.ids.max())
    if low < 0 or high >= bank.samples:
        raise MisalignedIds(
            f"sends sample {low if low < 0 else high}, but there are {bank.samples} samples", student=name
        )
    try:
        find_rows(part.ids, part.ids)
    except MisalignedIds as error:
        raise error.at(student=name) from None
    if len(rows := bank.contradicts(part.ids, part.labels)):
        raise LabelMismatch(
            f"has label {int(part.labels[rows[0]])} for sample {int(part.ids[rows[0]])}, where the rest "
            "of the cohort has another: do all read the same data?",
            student=name,
        )


def _most_common(sorted_ids: Sequence[Ids]) -> Ids:
    """The ids that most students send, so that an error names the odd student."""
    agreement = [sum(np.array_equal(ids, other) for other in sorted_ids) for ids in sorted_ids]
    return sorted_ids[agreement.index(max(agreement))]

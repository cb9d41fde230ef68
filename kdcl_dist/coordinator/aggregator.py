"""The coordinator's part of a step: check every message, align by sample id, form the ensemble.

No process group, no Ray. The coordinator owns the ensemble's state: the weights of `general`, the
residuals on held-out samples from which they are formed anew after each epoch, and the bank of the
students' last logits, where they walk the data in different orders (`distillation.window`).

Shapes: S students, B samples, C classes, N held-out samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from kdcl_dist.config.recipe import Recipe
from kdcl_dist.coordinator.logit_bank import Bank
from kdcl_dist.coordinator.window_check import WindowCheck
from kdcl_dist.distillation import ensembles
from kdcl_dist.errors import (
    LabelMismatch,
    MisalignedIds,
    NonFiniteLogits,
)
from kdcl_dist.exchange.alignment import find_rows, rows_of
from kdcl_dist.exchange.layout import sends_target
from kdcl_dist.exchange.message import Contribution, Message, by_student

__all__ = ["Aggregator", "Aligned", "Answer", "Target"]


class Aligned(NamedTuple):
    """All students' logits on the same samples: ids_B ascending, labels_B, logits_SBC.

    age_SB: steps since each student gave its logits of a sample, -1 where there are none, which then mean
    nothing; None where all are there and of one step. bad: students whose logits of this step are not
    finite, and are left out.
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

    def complete(self) -> Aligned:
        """The samples of which all students' logits are there."""
        return self if self.age is None else self.at((self.age >= 0).all(dim=0))


class Target(NamedTuple):
    """The soft target: ids_B, labels_B, log-probabilities (B, C) at the recipe's temperature."""

    ids: Tensor
    labels: Tensor
    log_probabilities: Tensor


class Answer(NamedTuple):
    """What the logits of a training step give.

    parts: each student's own rows. known: what there is of these samples, of all students; None where the
    students see different samples and nothing is kept. target: what they learn from, if anything. bad:
    students whose logits are not finite, and do not learn from the step.
    """

    parts: Sequence[Contribution]
    known: Aligned | None
    target: Target | None
    bad: tuple[int, ...]


class Aggregator:
    """Answers a step's messages; holds what the ensemble must remember between steps.

    Args:
        recipe: the run.
        bank: of the students' last logits, which training with a `window` of several steps needs.
        window_check: checks that all students send the samples of a window; None: no check.

    Attributes:
        present: places of the students that take part.
    """

    def __init__(
        self, recipe: Recipe, bank: Bank | None = None, window_check: WindowCheck | None = None
    ) -> None:
        self.recipe, self.bank, self.window_check = recipe, bank, window_check
        self.names = recipe.names
        count = len(self.names)
        self.present = list(range(count))
        self.weights_S = torch.full((count,), 1 / count, dtype=torch.float64)
        self._residuals: list[Tensor] = []
        self.bad_steps: dict[int, int] = {}

    def align(self, messages: Sequence[Message]) -> Aligned:
        """Bring all messages of a step into one order, that of ascending sample ids.

        Raises:
            ContributionError: one of them is about other samples or has other labels; the error names the
                student.
        """
        return self._align(self.parts(messages))

    def parts(self, messages: Sequence[Message]) -> list[Contribution]:
        """Each student's rows of the messages of those present."""
        workers = [each.student for each in self.recipe.workers if each.student in self.present]
        return by_student(messages, workers, len(self.names))

    def answer(self, parts: Sequence[Contribution], step: int) -> Answer:
        """Answer a training step.

        With a bank, all students' logits of the step are kept first; then the soft target of each of their
        samples is formed of all logits of it that are there, those of this step as they were sent. So it
        does not depend on the order of the students, nor on which of them asks. A sample that nobody but
        its own student has logits of gets none.

        Args:
            parts: each student's rows.
            step: the global step.

        Raises:
            ContributionError: as `align`; where the recipe's window lets students send different samples
                at a step, they must be the same by the window's end.
        """
        if self.window_check is not None:
            self.window_check.add(parts, self.present, step)
        if self.bank is None and self.recipe.distillation.window != 1:
            return Answer(parts, None, None, self._bad(parts))
        known = self._align(parts) if self.bank is None else self._recall(self.bank, parts, step)
        taught = known
        if self.bank is not None and known.age is not None:
            taught = known.at(self._covered(known.age))
        target_BC = self.soft_target(taught)
        target = None if target_BC is None else Target(taught.ids, taught.labels, target_BC)
        return Answer(parts, known, target, known.bad)

    def _align(self, parts: Sequence[Contribution]) -> Aligned:
        there = self.present
        ids_B, rows = self._agreed_rows(parts)
        labels_B = self._agreed_labels(ids_B, [parts[index].labels[rows[index]] for index in there])
        logits_SBC = torch.zeros(len(parts), len(ids_B), parts[there[0]].logits.shape[1])
        for index in there:
            logits_BC = parts[index].logits.float()
            torch.index_select(logits_BC, 0, rows[index], out=logits_SBC[index])
        bad = self._bad(parts)
        if not bad and len(there) == len(parts):
            return Aligned(ids_B, labels_B, logits_SBC)
        # What is not finite counts as no opinion, wherever it is looked at.
        logits_SBC[~torch.isfinite(logits_SBC).all(dim=2)] = 0
        sound = [index for index in there if index not in bad] or there
        age_SB = torch.full(logits_SBC.shape[:2], -1)
        age_SB[sound] = 0
        return Aligned(ids_B, labels_B, logits_SBC, age_SB, bad)

    def _agreed_rows(self, parts: Sequence[Contribution]) -> tuple[Tensor, dict[int, Tensor]]:
        """The ascending ids, and in which row each student has them."""
        sorts = {index: torch.sort(parts[index].ids) for index in self.present}
        ids_B = sorts[self.present[0]].values
        if all(torch.equal(found.values, ids_B) for found in sorts.values()) and _distinct(ids_B):
            return ids_B, {index: found.indices for index, found in sorts.items()}
        ids_B = _most_common([found.values for found in sorts.values()])
        return ids_B, {index: self._rows(index, parts[index], ids_B) for index in self.present}

    def _recall(self, bank: Bank, parts: Sequence[Contribution], step: int) -> Aligned:
        """Keep a step's logits; what there is of its samples."""
        for index in self.present:
            self._check_own(bank, index, parts[index])
        bad = self._bad(parts)
        sound = [index for index in self.present if index not in bad]
        for index in sound:
            bank.put(index, parts[index].ids, parts[index].logits, step)
        ids_B = torch.unique(torch.cat([part.ids for part in parts]))
        logits_SBC, age_SB = bank.latest(ids_B, step)
        labels_B = torch.empty_like(ids_B)
        for index in self.present:
            row_B = torch.searchsorted(ids_B, parts[index].ids)
            labels_B[row_B] = parts[index].labels
            if index in sound:
                logits_SBC[index, row_B] = parts[index].logits.float()
        return Aligned(ids_B, labels_B, logits_SBC, age_SB, bad)

    def _check_own(self, bank: Bank, index: int, part: Contribution) -> None:
        """See that one student's rows are of known samples, once each, and with their label."""
        low, high = int(part.ids.min()), int(part.ids.max())
        if low < 0 or high >= bank.samples:
            raise MisalignedIds(
                f"sends sample {low if low < 0 else high}, but there are {bank.samples} samples",
                student=self.names[index],
            )
        try:
            find_rows(part.ids, part.ids)
        except MisalignedIds as error:
            raise error.at(student=self.names[index]) from None
        if len(rows := bank.contradicts(part.ids, part.labels)):
            raise LabelMismatch(
                f"has label {int(part.labels[rows[0]])} for sample {int(part.ids[rows[0]])}, where the rest "
                "of the cohort has another: do all read the same data?",
                student=self.names[index],
            )

    def _covered(self, age_SB: Tensor) -> Tensor:
        """Which samples there is a soft target for: a peer's logits besides those of who asks."""
        if (teacher := self.recipe.distillation.teacher) is not None:
            return age_SB[self.names.index(teacher)] >= 0
        return (age_SB >= 0).sum(dim=0) > 1

    def soft_target(self, step: Aligned) -> Tensor | None:
        """The log-probabilities (B, C) that all learn from, at the recipe's temperature.

        None for the methods that have no common target: "none", and "dml", whose students have their
        peers' logits from the gather.
        """
        distillation = self.recipe.distillation
        if not sends_target(self.recipe):
            return None
        if distillation.teacher is not None:
            if (place := self.names.index(distillation.teacher)) in step.bad:
                raise self._not_finite(place)
            logits_BC = step.logits[place]
            return F.log_softmax(logits_BC / distillation.temperature, dim=1)
        return ensembles.log_soft_target(
            distillation.method,
            step.logits,
            step.labels,
            distillation.temperature,
            self.weights_S,
            None if step.age is None else step.age >= 0,
        )

    def predict(self, step: Aligned) -> Tensor:
        """The ensemble's log-probabilities (B, C) without knowing the labels, at T = 1.

        The weighted mean of the students' probabilities: the weights of `general` where they are the
        method's, else 1/S. The other ensembles choose by the label and cannot be asked at test time.
        """
        present_SB = None if step.age is None else step.age >= 0
        return ensembles.log_soft_target("general", step.logits, step.labels, 1.0, self.weights_S, present_SB)

    def begin_holdout(self) -> None:
        """Begin a pass over held-out samples, whatever became of the last one."""
        self._residuals = []

    def add_holdout(self, step: Aligned) -> None:
        """Collect the students' residuals p(true class) - 1 on held-out samples (KDCL eq. 9-10, at T = 1).

        One that is absent has no opinion: the same probability for every class.
        """
        probabilities_SBC = F.softmax(step.logits.double(), dim=2)
        index_SB1 = step.labels.expand(len(self.names), -1)[:, :, None]
        self._residuals.append(probabilities_SBC.gather(2, index_SB1)[:, :, 0] - 1)

    def update_weights(self) -> None:
        """Form the weights of `general` from the residuals collected in a pass."""
        self.weights_S = ensembles.general_weights(torch.cat(self._residuals, dim=1))
        self._residuals = []

    def state_dict(self) -> dict[str, Any]:
        """What a resumed coordinator needs, between passes over held-out samples."""
        check = self.window_check
        # "walks" is what version 0.1.0 called the sums: checkpoints keep the key.
        window_state = {} if check is None else {"walks": check.sums_S, "whole": check.whole}
        return {"names": self.names, "weights": self.weights_S, **window_state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up the state of `state_dict`."""
        self.weights_S = state["weights"]
        if self.window_check is not None:
            self.window_check.sums_S, self.window_check.whole = state["walks"], state["whole"]

    def _rows(self, index: int, part: Contribution, ids_B: Tensor) -> Tensor:
        try:
            return rows_of(ids_B, part.ids)
        except MisalignedIds as error:
            error.message = f"sends other samples than the rest of the cohort: {error.message}"
            raise error.at(student=self.names[index]) from None

    def _agreed_labels(self, ids_B: Tensor, labels: Sequence[Tensor]) -> Tensor:
        if all(torch.equal(each, labels[0]) for each in labels):
            return labels[0]
        labels_SB = torch.stack(list(labels))
        labels_B = torch.mode(labels_SB, dim=0).values
        place, sample = (labels_SB != labels_B).nonzero()[0].tolist()
        raise LabelMismatch(
            f"has label {int(labels_SB[place, sample])} for sample {int(ids_B[sample])}, where the "
            f"rest of the cohort has {int(labels_B[sample])}: do all read the same data?",
            student=self.names[self.present[place]],
        )

    def check_bad(self, bad: Sequence[int], steps: int) -> None:
        """See that no student has had unusable numbers for too long.

        Args:
            bad: students whose logits of this step, or gradient of the one before, are not finite.
            steps: how many steps in a row a student may have such; see `recipe.Failure`.

        Raises:
            NonFiniteLogits: one has them for more.
        """
        self.bad_steps = {index: self.bad_steps.get(index, 0) + 1 for index in bad}
        for index, count in self.bad_steps.items():
            if count > steps:
                raise self._not_finite(index)

    def _not_finite(self, index: int) -> NonFiniteLogits:
        count = max(1, self.bad_steps.get(index, 0))
        return NonFiniteLogits(
            f"its logits or gradients are NaN or infinite, for {count} steps in a row "
            f"(failure.max_bad_steps: {self.recipe.failure.max_bad_steps}): lower its optimizer.lr, or use "
            "precision fp32",
            student=self.names[index],
        )

    @staticmethod
    def _bad(parts: Sequence[Contribution]) -> tuple[int, ...]:
        """The students whose logits are not all finite."""
        # One sum tells: it is finite unless a logit is not, or finite logits overflow it.
        sums = [part.logits.sum(dtype=torch.float32) for part in parts]
        suspects = [index for index, total in enumerate(sums) if not bool(torch.isfinite(total))]
        return tuple(index for index in suspects if not bool(torch.isfinite(parts[index].logits).all()))


def _distinct(ascending_B: Tensor) -> bool:
    return not bool((ascending_B[1:] == ascending_B[:-1]).any())


def _most_common(sorted_ids: Sequence[Tensor]) -> Tensor:
    """The ids that most students send, so that an error names the odd one out."""
    agreement = [sum(torch.equal(ids, other) for other in sorted_ids) for ids in sorted_ids]
    return sorted_ids[agreement.index(max(agreement))]

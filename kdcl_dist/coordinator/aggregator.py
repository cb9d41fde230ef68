"""The coordinator's part of a step: check every message, align by sample id, form the ensemble.

No process group, no Ray. The aggregator holds the state of the ensemble: the weights of `general`, the
residuals on held-out samples that give the weights after each epoch, and the bank of the students' latest
logits, where students read the data in different orders (`distillation.window`).

Shapes: S students, B samples, C classes, N held-out samples.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from kdcl_dist.config.recipe import Recipe
from kdcl_dist.config.rounds import Kind
from kdcl_dist.coordinator.aligned_logits import Aligned, Arrivals, align, non_finite, recall
from kdcl_dist.coordinator.logit_bank import LogitBank
from kdcl_dist.coordinator.mixed_labels import with_largest_classes, with_mixed_labels
from kdcl_dist.coordinator.own_method import load_method, try_method
from kdcl_dist.coordinator.stored_members import StoredMembers
from kdcl_dist.coordinator.window_check import WindowCheck
from kdcl_dist.distillation.ensembles import general_weights
from kdcl_dist.distillation.labels import largest_class
from kdcl_dist.distillation.methods import Context
from kdcl_dist.distillation.methods import Target as TargetMethod
from kdcl_dist.distillation.soft_target import log_soft_target
from kdcl_dist.distillation.solving import prepare_solver
from kdcl_dist.errors import NonFiniteLogits
from kdcl_dist.exchange.message import Contribution, Flag, Message, by_student

__all__ = ["Aggregator", "Answer", "Target"]


class Target(NamedTuple):
    """The soft target: ids_B, labels_B, log-probabilities (B, C) at the recipe's temperature."""

    ids: Tensor
    labels: Tensor
    log_probabilities: Tensor


class Answer(NamedTuple):
    """The coordinator's answer to the logits of a training step.

    parts: each student's own rows; of mixed samples with the classes of the larger share. known: all
    students' logits of these samples; None where students have different samples and there is no bank.
    target: the soft target, if the method has one. bad: students whose logits are not finite, which do not
    learn from the step.
    """

    parts: Sequence[Contribution]
    known: Aligned | None
    target: Target | None
    bad: tuple[int, ...]


class Aggregator:
    """Answers the messages of a step; holds the ensemble's state between steps.

    Args:
        recipe: the run.
        bank: of the students' latest logits, which a `window` of several steps needs.
        window_check: checks that all students send the samples of a window; None: no check.

    Attributes:
        members: indices of the students whose epochs it is. present: of those of them that take part, where
            others have failed.
        stored: the students whose logits files have; none until they are opened.
        bad_steps: by student the number of consecutive steps with logits or gradients that are not finite.
    """

    def __init__(
        self, recipe: Recipe, bank: LogitBank | None = None, window_check: WindowCheck | None = None
    ) -> None:
        self.recipe, self.bank, self.window_check = recipe, bank, window_check
        self.names = recipe.names
        count = len(self.names)
        self.teachers = [self.names.index(name) for name in recipe.distillation.teachers]
        self.members = self.present = list(range(count))
        self.stored = StoredMembers()
        self.weights_S = torch.full((count,), 1 / count, dtype=torch.float64)
        self.method: str | TargetMethod = recipe.distillation.method_name
        self.method_state: dict[str, Any] = {}
        self._residuals: list[Tensor] = []
        self.bad_steps: dict[int, int] = {}

    def load_method(self, classes: int) -> None:
        """Have the solver compiled, and load and try a soft target of one's own: only a training needs them.

        Raises:
            MethodError: it cannot be loaded, or fails on random logits of so many classes.
        """
        prepare_solver()
        if (own := self.recipe.distillation.own_method) is not None and not own.peers:
            self.method = load_method(own)
            try_method(self.method, tuple(self.names), classes, mixed=self.recipe.data.mixes)

    def adopt(self, recipe: Recipe, window_check: WindowCheck | None) -> None:
        """Take over a recipe, whose students that are new are the last ones.

        Args:
            recipe: of the run from here on.
            window_check: a new one for it; it goes on with the sums of the one before.
        """
        state = self.state_dict()
        self.recipe, self.names, self.window_check = recipe, recipe.names, window_check
        count = len(self.names)
        if self.bank is not None:
            self.bank.extend(count)
        self.weights_S = torch.full((count,), 1 / count, dtype=torch.float64)
        self.load_state_dict(state)

    @property
    def senders(self) -> list[int]:
        """Indices of the students that take part and send messages."""
        return [index for index in self.present if index not in self.stored.files]

    def align(self, messages: Sequence[Message], kind: Kind = Kind.EVALUATE) -> Aligned:
        """Bring all messages of a test into one order, that of ascending sample ids; with stored logits.

        Raises:
            ContributionError: a message has other samples or labels than most; the error names the student.
            DataError: as `StoredMembers.with_test_rows`.
        """
        aligned = align(self.parts(messages), self.senders, self.names)
        return self.stored.with_test_rows(aligned, kind).current()

    def parts(self, messages: Sequence[Message]) -> list[Contribution]:
        """Each student's rows of the messages of the present workers."""
        workers = [each.student for each in self.recipe.workers if each.student in self.present]
        return by_student(messages, workers, len(self.names))

    def flagged(self, messages: Sequence[Message]) -> set[int]:
        """The students of whose logits some that other coordinators have are not finite."""
        workers = [each.student for each in self.recipe.workers if each.student in self.present]
        pairs = zip(workers, messages, strict=True)
        return {student for student, message in pairs if message.has(Flag.NOT_FINITE)}

    def answer(
        self,
        parts: Sequence[Contribution],
        step: int,
        epoch: int = 0,
        part: int = 0,
        arrivals: Arrivals | None = None,
    ) -> Answer:
        """Answer a training step, or a part of one.

        With a bank, all students' logits of the step are stored first. The soft target of each of their
        samples is then formed of all logits of the sample, those of this step unrounded. So the target
        depends neither on the order of the students nor on the student that asks. A sample of which only
        one student has logits has no target.

        Args:
            parts: each student's rows.
            step: the global step; epoch: its epoch; part: of the step, from 0.
            arrivals: of some of the rows; see `align`.

        Raises:
            ContributionError: as `align`; where the recipe's window lets students send different samples
                at a step, the samples must be the same by the window's end.
            DataError: as `StoredMembers.with_training_rows`.
        """
        if self.window_check is not None:
            self.window_check.add(parts, self.senders, step)
        if self.bank is None and self.recipe.distillation.window != 1:
            return Answer(parts, None, None, non_finite(parts))
        if self.bank is None:
            aligned = align(parts, self.senders, self.names, arrivals)
            aligned = self.stored.with_training_rows(aligned, epoch).current()
            known = covered = with_mixed_labels(self.recipe, aligned, step * self.recipe.accumulate + part)
            parts = with_largest_classes(parts, known)
        else:
            known = recall(self.bank, parts, self.senders, self.names, step).of(self.members)
            known = self.stored.with_training_rows(known, epoch)
            covered = known.covered(self.teachers)
        target_BC = self.soft_target(covered, step, epoch)
        target = None if target_BC is None else Target(covered.ids, largest_class(covered.labels), target_BC)
        return Answer(self.stored.parts(parts, known), known, target, known.bad)

    def soft_target(self, aligned: Aligned, step: int = 0, epoch: int = 0) -> Tensor | None:
        """The log-probabilities (B, C) of the soft target at the recipe's temperature.

        None for the methods without a common target: that of students who learn alone, and those whose
        students have their peers' logits from the gather.

        Raises:
            NonFiniteLogits: no teacher's logits are finite.
            MethodError: a method of the user's own fails, or gives no log-probabilities.
        """
        distillation = self.recipe.distillation
        if not distillation.sends_target:
            return None
        teachers = [index for index in self.teachers if index in self.present]
        if teachers and set(teachers) <= {*aligned.bad}:
            raise self._not_finite(teachers[0])
        return log_soft_target(
            self.method,
            aligned.logits,
            aligned.labels,
            distillation.temperature,
            present_SB=None if aligned.age is None else aligned.age >= 0,
            context=Context(
                step,
                epoch,
                tuple(self.names),
                self.weights_S,
                state=self.method_state,
                teacher=distillation.teacher,
            ),
        )

    def predict(self, aligned: Aligned) -> Tensor:
        """The ensemble's log-probabilities (B, C) without knowing the labels, at T = 1.

        The weighted mean of the students' probabilities: with the weights of `general` if that is the
        method, else with 1/S. The other ensembles choose by the label, which a test must not know.
        """
        present_SB = None if aligned.age is None else aligned.age >= 0
        return log_soft_target("general", aligned.logits, aligned.labels, 1.0, self.weights_S, present_SB)

    def begin_holdout(self) -> None:
        """Begin a pass over held-out samples; residuals of an unfinished pass are dropped."""
        self._residuals = []

    def add_holdout(self, aligned: Aligned) -> None:
        """Collect the students' residuals p(true class) - 1 on held-out samples (KDCL eq. 9-10, at T = 1).

        A member that is absent has no opinion: the same probability for every class.
        """
        probabilities_SBC = F.softmax(aligned.logits.double(), dim=2)
        index_SB1 = aligned.labels.expand(len(self.names), -1)[:, :, None]
        self._residuals.append(probabilities_SBC.gather(2, index_SB1)[:, :, 0] - 1)

    def update_weights(self) -> None:
        """Form the weights of `general` from the residuals of a pass; those who are no members have none."""
        residuals_SN = torch.cat(self._residuals, dim=1)
        self.weights_S = torch.zeros_like(self.weights_S)
        self.weights_S[self.members] = general_weights(residuals_SN[self.members])
        self._residuals = []

    def state_dict(self) -> dict[str, Any]:
        """The state that a resumed coordinator needs, between passes over held-out samples."""
        check = self.window_check
        # Version 0.1.0 called the sums "walks": checkpoints keep the key.
        window_state = {} if check is None else {"walks": check.sums_S, "whole": check.whole}
        method_state = {"method": copy.deepcopy(self.method_state)} if self.method_state else {}
        return {"names": self.names, "weights": self.weights_S, **window_state, **method_state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load the state of `state_dict`; students that have been added since are the last ones."""
        if self.recipe.distillation.needs_holdout or len(state["weights"]) == len(self.names):
            self.weights_S = _padded(state["weights"], len(self.names))
        self.method_state = state.get("method", {})
        if self.window_check is not None and "walks" in state:
            sums_S = _padded(state["walks"], len(self.names))
            self.window_check.sums_S, self.window_check.whole = sums_S, state["whole"]

    def check_bad(self, bad: Sequence[int], steps: int) -> None:
        """See that no student has had logits or gradients that are not finite for too long.

        Args:
            bad: students whose logits of this step, or gradient of the step before, are not finite.
            steps: how many consecutive steps are allowed; see `kdcl_dist.config.sections.Failure`.

        Raises:
            NonFiniteLogits: a student has more such steps.
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


def _padded(values_S: Tensor, count: int) -> Tensor:
    """Values of so many students, with zeros for those that a checkpoint does not know yet."""
    return F.pad(values_S, (0, count - len(values_S)))

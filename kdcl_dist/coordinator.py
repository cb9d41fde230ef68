"""The coordinator's part of a step: check every message, align by sample id, form the ensemble.

No process group, no Ray. The coordinator owns the ensemble's state: the weights of `general` and the
residuals on held-out samples from which they are formed anew after each epoch.

Shapes: S students, B samples, C classes, N held-out samples.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from kdcl_dist import ensembles
from kdcl_dist.alignment import rows_of
from kdcl_dist.errors import (
    ForeignMessage,
    LabelMismatch,
    MisalignedIds,
    NonFiniteLogits,
    ShapeMismatch,
    StaleContribution,
)
from kdcl_dist.message import MAGIC, PROTOCOL, Contribution, Message, by_student
from kdcl_dist.plan import Turn, share_of
from kdcl_dist.recipe import Member, Recipe

__all__ = ["Aligned", "Coordinator", "check_messages", "sends_target"]


class Aligned(NamedTuple):
    """All students' logits on the same samples: ids_B ascending, labels_B, logits_SBC."""

    ids: Tensor
    labels: Tensor
    logits: Tensor


class Coordinator:
    """Answers a step's messages; holds what the ensemble must remember between steps."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.names = recipe.names
        count = len(self.names)
        self.weights_S = torch.full((count,), 1 / count, dtype=torch.float64)
        self._residuals: list[Tensor] = []

    def align(self, messages: Sequence[Message]) -> Aligned:
        """Bring all messages of a step into one order, that of ascending sample ids.

        Raises:
            ContributionError: one of them is about other samples, has other labels, or is not finite;
                the error names the student.
        """
        parts = by_student(messages, [member.student for member in self.recipe.members])
        ids_B = _agreed_ids(parts)
        rows = [self._rows(index, part, ids_B) for index, part in enumerate(parts)]
        labels_SB = torch.stack([part.labels[row] for part, row in zip(parts, rows, strict=True)])
        logits_SBC = torch.stack([part.logits[row] for part, row in zip(parts, rows, strict=True)])
        labels_B = self._agreed_labels(ids_B, labels_SB)
        self._check_finite(ids_B, logits_SBC)
        return Aligned(ids_B, labels_B, logits_SBC)

    def soft_target(self, step: Aligned) -> Tensor | None:
        """The log-probabilities (B, C) that all learn from, at the recipe's temperature.

        None for the methods that have no common target: "none", and "dml", whose students have their
        peers' logits from the gather.
        """
        distillation = self.recipe.distillation
        if not sends_target(self.recipe):
            return None
        if distillation.teacher is not None:
            logits_BC = step.logits[self.names.index(distillation.teacher)]
            return F.log_softmax(logits_BC / distillation.temperature, dim=1)
        return ensembles.log_soft_target(
            distillation.method, step.logits, step.labels, distillation.temperature, self.weights_S
        )

    def predict(self, step: Aligned) -> Tensor:
        """The ensemble's log-probabilities (B, C) without knowing the labels, at T = 1.

        The weighted mean of the students' probabilities: the weights of `general` where they are the
        method's, else 1/S. The other ensembles choose by the label and cannot be asked at test time.
        """
        return ensembles.general_log(step.logits, self.weights_S, 1.0)

    def add_holdout(self, step: Aligned) -> None:
        """Collect the students' residuals p(true class) - 1 on held-out samples (KDCL eq. 9-10, at T = 1)."""
        probabilities_SBC = F.softmax(step.logits.double(), dim=2)
        index_SB1 = step.labels.expand(len(self.names), -1)[:, :, None]
        self._residuals.append(probabilities_SBC.gather(2, index_SB1)[:, :, 0] - 1)

    def update_weights(self) -> None:
        """Form the weights of `general` from the residuals collected since the last call."""
        self.weights_S = ensembles.general_weights(torch.cat(self._residuals, dim=1))
        self._residuals = []

    def state_dict(self) -> dict[str, Any]:
        """What a resumed coordinator needs, between passes over held-out samples."""
        return {"names": self.names, "weights": self.weights_S}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up the state of `state_dict`."""
        self.weights_S = state["weights"]

    def _rows(self, index: int, part: Contribution, ids_B: Tensor) -> Tensor:
        try:
            return rows_of(ids_B, part.ids)
        except MisalignedIds as error:
            error.message = f"sends other samples than the rest of the cast: {error.message}"
            raise error.at(student=self.names[index]) from None

    def _agreed_labels(self, ids_B: Tensor, labels_SB: Tensor) -> Tensor:
        labels_B = torch.mode(labels_SB, dim=0).values
        if bool((differs_SB := labels_SB != labels_B).any()):
            student, sample = differs_SB.nonzero()[0].tolist()
            raise LabelMismatch(
                f"has label {int(labels_SB[student, sample])} for sample {int(ids_B[sample])}, where the "
                f"rest of the cast has {int(labels_B[sample])}: do all read the same data?",
                student=self.names[student],
            )
        return labels_B

    def _check_finite(self, ids_B: Tensor, logits_SBC: Tensor) -> None:
        # One sum a step tells: it is finite unless a logit is not, or finite logits overflow it.
        if bool(torch.isfinite(logits_SBC.sum(dtype=torch.float64))):
            return
        finite_SB = torch.isfinite(logits_SBC).all(dim=2)
        if not bool(finite_SB.all()):
            student, sample = (~finite_SB).nonzero()[0].tolist()
            count = int((~finite_SB[student]).sum())
            raise NonFiniteLogits(
                f"its logits of {count} of {len(ids_B)} samples are NaN or infinite "
                f"(the first is sample {int(ids_B[sample])}): lower its optimizer.lr, or use precision fp32",
                student=self.names[student],
            )


def _agreed_ids(parts: Sequence[Contribution]) -> Tensor:
    """The ascending ids that most students send, so that an error names the odd one out."""
    sorted_ids = [torch.sort(part.ids).values for part in parts]
    agreement = [sum(bool(torch.equal(ids, other)) for other in sorted_ids) for ids in sorted_ids]
    return sorted_ids[agreement.index(max(agreement))]


def sends_target(recipe: Recipe) -> bool:
    """Whether the coordinator's answer carries a soft target; every rank knows it from the recipe."""
    return recipe.distillation.method not in ("none", "dml")


def check_messages(
    messages: Sequence[Message], members: Sequence[Member], turn: Turn, *, run: int, generation: int
) -> None:
    """See that every message is of this run, of this turn, and that all students have as many rows.

    Raises:
        ForeignMessage, StaleContribution, ShapeMismatch: naming the student.
    """
    expected_rows = _expected_rows(messages, members)
    for index, message in enumerate(messages):
        identity = {
            "magic": MAGIC,
            "protocol": PROTOCOL,
            "run": run,
            "generation": generation,
            "sender": index,
        }
        moment = {"kind": turn.kind, "step": turn.step, "part": turn.part}
        size = {"classes": message.layout.classes, "rows": expected_rows[index]}
        for error, expected in (
            (ForeignMessage, identity),
            (StaleContribution, moment),
            (ShapeMismatch, size),
        ):
            found = {field: int(message.header[field]) for field in expected}
            if found != expected:
                wrong = ", ".join(
                    f"{field} {found[field]} instead of {int(value)}"
                    for field, value in expected.items()
                    if found[field] != value
                )
                raise error(f"sends {wrong}", student=members[index].name, step=turn.step)


def _expected_rows(messages: Sequence[Message], members: Sequence[Member]) -> list[int]:
    """The rows of each member if its student had as many as most students have."""
    totals, replicas = Counter[int](), Counter(member.student for member in members)
    for message, member in zip(messages, members, strict=True):
        totals[member.student] += int(message.header["rows"])
    total = Counter(totals.values()).most_common(1)[0][0]
    return [share_of(total, member.replica, replicas[member.student]) for member in members]

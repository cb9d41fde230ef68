"""What a student learns from: the soft target in the coordinator's answer, or its peers' logits.

Shapes: B batch, C classes, P peers, R rows of an answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from kdcl_dist.config.rounds import Round
from kdcl_dist.distillation.methods import Context
from kdcl_dist.exchange.alignment import OwnRows, find_rows, rows_of
from kdcl_dist.exchange.message import Message, by_student
from kdcl_dist.student.student import Student

__all__ = ["AnswerReader", "Read"]


class Read(NamedTuple):
    """What a student learns from, in its own order of samples; arguments of `StudentLoss`."""

    target: Tensor | None = None
    covered_B: Tensor | None = None
    context: Context | None = None


class AnswerReader:
    """Reads the answers to one student.

    Args:
        student: that learns.
        index: of the student in the recipe.
        present: indices of the students that take part.
    """

    def __init__(self, student: Student, index: int, present: Sequence[int]) -> None:
        self.student, self.recipe, self.index, self.present = student, student.recipe, index, present
        workers = [worker.student for worker in student.recipe.workers]
        self._senders = [sender for sender in workers if sender in present]

    def read(self, round: Round, rows: OwnRows, answer: Message, messages: Sequence[Message]) -> Read:
        """What the student learns from in a part of a step.

        Args:
            round: the part.
            rows: of the student's samples.
            answer: of the coordinator.
            messages: of all workers that take part, for a method with peers.

        Raises:
            MisalignedIds: the answer, or a peer's message, lacks one of the samples.
        """
        distillation = self.recipe.distillation
        if distillation.peers:
            others = (peer for peer in self.present if peer != self.index)
            peers = [peer for peer in others if not answer.excludes(peer)]
            target_PBC = self._logits_of(peers, rows.ids_B, answer, messages) if peers else None
            return Read(target_PBC, context=self._context(round, peers))
        return self._target(rows, answer) if distillation.sends_target else Read()

    def _target(self, rows: OwnRows, answer: Message) -> Read:
        ids_R, _, target_RC = answer.contribution()
        if not self.recipe.distillation.keeps_logits:
            return Read(target_RC.index_select(0, rows.among(ids_R)))
        row_B, covered_B = find_rows(rows.ids_B, ids_R)
        return Read(answer.logits[row_B], covered_B)

    def _logits_of(
        self, peers: Sequence[int], ids_B: Tensor, answer: Message, messages: Sequence[Message]
    ) -> Tensor:
        """The peers' logits (P, B, C), as they were sent; those of stored members are in the answer."""
        parts, stored = by_student(messages, self._senders, len(self.recipe.students)), self.recipe.stored
        for index, own in zip(stored, answer.contribution().split(len(stored)), strict=True):
            parts[index] = own
        rows = [parts[peer].logits[rows_of(ids_B, parts[peer].ids)] for peer in peers]
        return torch.stack(rows).float()

    def _context(self, round: Round, peers: Sequence[int]) -> Context:
        """What a method with peers may know."""
        recipe, student = self.recipe, self.student
        present = [recipe.students[peer] for peer in peers]
        return Context(
            round.step,
            round.epoch,
            tuple(peer.name for peer in present),
            student=student.spec.name,
            fixed=tuple(peer.name for peer in present if not recipe.learns(peer, round.epoch)),
            average=None if student.replicas is None else student.replicas.average,
        )

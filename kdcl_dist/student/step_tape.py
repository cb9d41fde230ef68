"""A training step on tape: what its parts were computed from and came to, so that it can be repeated.

Shapes: B batch, C classes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from kdcl_dist.config.rounds import Round
from kdcl_dist.data.samples import Inputs
from kdcl_dist.distillation.methods import Context
from kdcl_dist.student.student import Student
from kdcl_dist.utils.random_state import keep_random_state

__all__ = ["Lesson", "StepTape"]


class Lesson(NamedTuple):
    """What a student learns a part of a step from: the arguments of its loss beside the logits."""

    labels_B: Tensor
    target: Tensor | None
    covered_B: Tensor | None
    context: Context | None
    ids_B: Tensor | None = None


@dataclass
class _Part:
    """A part of a step; `results` has the names that an error shows."""

    round: Round
    inputs: Inputs
    learns: bool
    restore_random: Callable[[], None]
    lesson: Lesson | None = None
    restore_random_of_loss: Callable[[], None] = lambda: None
    results: dict[str, Tensor] = field(default_factory=dict)


class StepTape:
    """The parts of one step of a student.

    A student repeats a part with the same random numbers: those of its network, and those of its loss, before
    which the next batch may have drawn some.
    """

    def __init__(self, student: Student) -> None:
        self.student = student
        self.parts: list[_Part] = []

    @property
    def results(self) -> dict[str, Tensor]:
        """The results of all parts, by name."""
        return _of_parts([part.results for part in self.parts])

    @property
    def is_learned(self) -> bool:
        """Whether no part was left out, which would leave gradients that nobody uses."""
        return all(part.lesson is not None for part in self.parts)

    def begin(self, round: Round, inputs: Inputs, learns: bool) -> None:
        """Note what a part is computed from, before its forward pass."""
        self.parts.append(_Part(round, inputs, learns, keep_random_state(self.student.device)))

    def keep(self, lesson: Lesson) -> None:
        """Note what the part is learned from, before its loss."""
        self.parts[-1].lesson = lesson
        self.parts[-1].restore_random_of_loss = keep_random_state(self.student.device)

    def end(self, logits_BC: Tensor, sent_BC: Tensor, losses: Tensor | None) -> None:
        """Note the results of the part.

        Args:
            logits_BC: of the forward pass; copied.
            sent_BC: as the message has them; copied.
            losses: the losses, and whether the update was skipped (4,); None if the part was left out.
        """
        results = {"logits": logits_BC.detach().clone(), "sent logits": sent_BC.clone()}
        self.parts[-1].results = results if losses is None else results | {"losses": losses}

    def repeat(self, lr: float) -> dict[str, Tensor]:
        """Compute all parts again, from the state that the student has; returns their results by name."""
        found, paused = [], False
        for part in self.parts:
            logits_BC, results = self._forward(part)
            if part.lesson is None:
                self.student.undo_forward()
            else:
                results["losses"], paused = self._learn(part, logits_BC, lr, paused)
            found.append(results)
        return _of_parts(found)

    def _forward(self, part: _Part) -> tuple[Tensor, dict[str, Tensor]]:
        """The logits (B, C) of a part, with gradient, and the results so far."""
        step, number = part.round.step, part.round.part
        part.restore_random()
        logits_BC = self.student.forward(part.inputs, step, number, learns=part.learns)
        sent_BC = torch.empty_like(part.results["sent logits"])
        sent_BC.copy_(self.student.contribution(logits_BC, step, number))
        return logits_BC, {"logits": logits_BC.detach(), "sent logits": sent_BC}

    def _learn(self, part: _Part, logits_BC: Tensor, lr: float, paused: bool) -> tuple[Tensor, bool]:
        """Learn from a part; returns the losses (4,) as `end` takes them, and whether the step is paused."""
        assert part.lesson is not None
        student = self.student
        part.restore_random_of_loss()
        losses = student.loss(logits_BC, *part.lesson)
        paused |= student.recipe.distillation.pauses and student.loss.paused
        skipped = torch.zeros_like(losses.total)
        if part.learns and paused:
            student.undo_forward()
        elif part.learns:
            skipped = student.learn(losses.total, lr, part.round.part)
        return torch.stack([*losses, skipped]).detach(), paused


def _of_parts(results: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The results of all parts, each under a name of its own."""
    if len(results) == 1:
        return results[0]
    return {
        f"{name} of part {number}": tensor
        for number, part in enumerate(results)
        for name, tensor in part.items()
    }

"""The baseline: one process trains all students in turn, as public implementations do.

The arithmetic is that of a distributed run: `tests/integration/test_equals_reference.py` shows that a plain
sequential loop gives the same weights bit for bit. Studies of many short runs use this class too.
"""

from __future__ import annotations

import time

import torch
from torch import Tensor

from kdcl_dist.config.recipe import Recipe
from kdcl_dist.coordinator.aggregator import Aggregator
from kdcl_dist.coordinator.aligned_logits import Aligned
from kdcl_dist.coordinator.logit_bank import make_bank
from kdcl_dist.data.training_data import TrainingData
from kdcl_dist.exchange.alignment import find_rows
from kdcl_dist.exchange.layout import DTYPES
from kdcl_dist.exchange.message import Contribution
from kdcl_dist.run.metrics import ENSEMBLE, Scores
from kdcl_dist.student.student import Student

__all__ = ["InTurn"]


class InTurn:
    """All students of a recipe in this process, and on one device."""

    def __init__(self, recipe: Recipe, device: torch.device | str = "cpu") -> None:
        self.recipe, self.training_data = recipe, TrainingData.open(recipe)
        classes = len(self.training_data.train.classes)
        self.students = [
            Student.of(self.training_data, index, device=torch.device(device))
            for index in range(len(recipe.students))
        ]
        bank = make_bank(recipe, len(self.training_data.train), classes)
        self.coordinator = Aggregator(recipe, bank)
        self.coordinator.load_method(classes)
        self.streams = [self.training_data.training_batches(index, 0) for index in range(len(self.students))]

    def train(self) -> dict[str, dict[str, float]]:
        """Train all epochs, and return the test results after the last one."""
        schedule = self.training_data.schedule
        for epoch in range(schedule.epochs):
            for step in range(schedule.steps_per_epoch):
                self.step(epoch * schedule.steps_per_epoch + step)
            if schedule.holdout_batches:
                for batch in self.training_data.holdout_batches():
                    logits = torch.stack([student.predict(batch.inputs).cpu() for student in self.students])
                    self.coordinator.add_holdout(Aligned(batch.ids, batch.labels, logits))
                self.coordinator.update_weights()
        return self.test()

    def step(self, step: int) -> float:
        """One step of all students, one after another; returns its seconds."""
        started = time.perf_counter()
        for part in range(self.recipe.accumulate):
            self._part(step, part)
        return time.perf_counter() - started

    def _part(self, step: int, part: int) -> None:
        """One part of a step, of all students."""
        batches = [next(stream) for stream in self.streams]
        per_epoch = self.training_data.schedule.steps_per_epoch
        learns = [student.learns(step // per_epoch) for student in self.students]
        logits = [
            student.forward(batch.inputs, step, part, learns=learning)
            for student, batch, learning in zip(self.students, batches, learns, strict=True)
        ]
        sent = [
            self._as_sent(student.contribution(own, step, part).cpu())
            for student, own in zip(self.students, logits, strict=True)
        ]
        parts = [Contribution(b.ids, b.labels, z) for b, z in zip(batches, sent, strict=True)]
        answer = self.coordinator.answer(parts, step, step // per_epoch, part)
        for index, (student, batch) in enumerate(zip(self.students, batches, strict=True)):
            own = covered = None
            if answer.target is not None and len(answer.target.ids):
                row, covered = find_rows(batch.ids, answer.target.ids)
                own = self._as_sent(answer.target.log_probabilities[row])
            elif self.recipe.distillation.peers and answer.known is not None:
                row, _ = find_rows(batch.ids, answer.known.ids)
                peers = [j for j in range(len(self.students)) if j != index]
                own, covered = answer.known.logits[peers][:, row], None
            loss = student.loss(logits[index], batch.loss_labels, own, covered, ids_B=batch.ids).total
            if learns[index]:
                student.learn(loss, student.lr(step, per_epoch), part)

    def _as_sent(self, values: Tensor) -> Tensor:
        """The values that arrive when these are sent with the recipe's precision."""
        dtype = DTYPES[self.recipe.distillation.wire_precision]
        return values.clamp(min=torch.finfo(dtype).min).to(dtype).float()

    def test(self) -> dict[str, dict[str, float]]:
        """Loss, top1 and top5 on the test samples, by student and for the ensemble."""
        scores = {name: Scores() for name in (*self.recipe.names, ENSEMBLE)}
        for batch in self.training_data.test_batches():
            logits = torch.stack([student.predict(batch.inputs).cpu() for student in self.students])
            for name, own in zip(self.recipe.names, logits, strict=True):
                scores[name].add_logits(own, batch.labels)
            aligned = Aligned(batch.ids, batch.labels, logits)
            scores[ENSEMBLE].add(self.coordinator.predict(aligned), batch.labels)
        return {name: score.values() for name, score in scores.items()}

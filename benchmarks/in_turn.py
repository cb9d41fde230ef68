"""One process that trains all students in turn, as public implementations do: the baseline.

Same arithmetic as a distributed run (`tests/test_equals_reference.py` shows that a plain sequential
loop gives the same weights bit for bit), so it also serves where many short runs are needed.
"""

from __future__ import annotations

import time

import torch
import torch.nn.functional as F

from kdcl_dist.alignment import rows_of
from kdcl_dist.coordinator import Aligned, Coordinator
from kdcl_dist.metrics import ENSEMBLE, Scores
from kdcl_dist.recipe import Recipe
from kdcl_dist.session import Session
from kdcl_dist.student import Student

__all__ = ["InTurn"]


class InTurn:
    """All students of a recipe in this process."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe, self.session = recipe, Session.open(recipe)
        classes, channels = len(self.session.train.classes), self.session.train.channels
        self.students = [
            Student(recipe, index, classes=classes, channels=channels, device=torch.device("cpu"))
            for index in range(len(recipe.students))
        ]
        self.coordinator = Coordinator(recipe)
        self.streams = [self.session.training(index, 0) for index in range(len(self.students))]

    def train(self) -> dict[str, dict[str, float]]:
        """Train to the end; the test results after the last epoch."""
        plan = self.session.plan
        for epoch in range(plan.epochs):
            for step in range(plan.steps_per_epoch):
                self.step(epoch * plan.steps_per_epoch + step)
            if plan.holdout_batches:
                for batch in self.session.holdout():
                    logits = torch.stack([student.predict(batch.images) for student in self.students])
                    self.coordinator.add_holdout(Aligned(batch.ids, batch.labels, logits))
                self.coordinator.update_weights()
        return self.test()

    def step(self, step: int) -> float:
        """One step of all students, one after another; its seconds."""
        started = time.perf_counter()
        batches = [next(stream) for stream in self.streams]
        per_epoch = self.session.plan.steps_per_epoch
        learns = [student.learns(step // per_epoch) for student in self.students]
        logits = [
            student.forward(batch.images, step, learns=learning)
            for student, batch, learning in zip(self.students, batches, learns, strict=True)
        ]
        ids = torch.sort(batches[0].ids).values
        rows = [rows_of(ids, batch.ids) for batch in batches]
        sent = [s.contribution(z, step) for s, z in zip(self.students, logits, strict=True)]
        aligned = Aligned(
            ids,
            batches[0].labels[rows[0]],
            torch.stack([z[row] for z, row in zip(sent, rows, strict=True)]),
        )
        target = self.coordinator.soft_target(aligned)
        for index, (student, batch) in enumerate(zip(self.students, batches, strict=True)):
            place = rows_of(batch.ids, ids)
            own = None if target is None else target[place]
            if self.recipe.distillation.method == "dml":
                peers = [j for j in range(len(self.students)) if j != index]
                own = F.log_softmax(aligned.logits[peers][:, place], dim=2)
            loss = student.loss(logits[index], batch.labels, own).total
            if learns[index]:
                student.learn(loss, student.lr(step, per_epoch))
        return time.perf_counter() - started

    def test(self) -> dict[str, dict[str, float]]:
        """Loss, top1 and top5 on the test samples, by student and for the ensemble."""
        scores = {name: Scores() for name in (*self.recipe.names, ENSEMBLE)}
        for batch in self.session.testing():
            logits = torch.stack([student.predict(batch.images) for student in self.students])
            for name, own in zip(self.recipe.names, logits, strict=True):
                scores[name].add_logits(own, batch.labels)
            aligned = Aligned(batch.ids, batch.labels, logits)
            scores[ENSEMBLE].add(self.coordinator.predict(aligned), batch.labels)
        return {name: score.values() for name, score in scores.items()}

"""What a student does before the coordinator's answer is there, and what it takes back."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from cohorts import MakeRecipe, assert_same

from kdcl_dist.data.training_data import TrainingData
from kdcl_dist.exchange.message import Flag, Message, MessageLayout
from kdcl_dist.membership.heartbeat import Heartbeat
from kdcl_dist.run.run import Run
from kdcl_dist.student.loop import StudentLoop
from kdcl_dist.student.student import Student

CPU = torch.device("cpu")
STEPS = 3


class Answers:
    """An exchange whose coordinator leaves student 0 out of one step, and ends the generation after some."""

    def __init__(self, student: Student, left_out: int) -> None:
        self.student, self.left_out = student, left_out
        self.monitor = SimpleNamespace(heartbeat=Heartbeat())
        layout = MessageLayout(student.recipe.batch_size, 4)
        self.outgoing, self.answer, self.messages = Message(layout), Message(layout), list[Message]()
        self.had_gradient: list[bool] = []

    def gather(self, limit_s: float | None) -> None:
        """Nobody needs the message."""

    def post_receive(self, with_rows: bool) -> None:
        """The answer is formed later."""

    def broadcast(self, with_rows: bool, limit_s: float | None) -> Message:
        """Note what the student has done by now, and answer."""
        self.had_gradient.append(all(each.grad is not None for each in self.student.model.parameters()))
        step = int(self.outgoing.header["step"])
        self.answer.reset(1, step, 0, Flag.REFORM if step + 1 == STEPS else Flag.NONE)  # type: ignore[arg-type]
        if with_rows:
            ids = self.outgoing.contribution().ids.sort().values
            self.answer.write_rows(ids, torch.full((len(ids), 4), 0.25).log())
        if step == self.left_out:
            self.answer.exclude([0])
        return self.answer


def run_loop(training_data: TrainingData, run: Run, left_out: int = -1) -> tuple[Student, Answers]:
    """A student after some steps, and what its exchange saw."""
    student = Student.of(training_data, 0, device=CPU)
    exchange: Any = Answers(student, left_out)
    at = training_data.schedule.first(0)
    generation: Any = SimpleNamespace(students=[0, 1], epochs=2, at=at)
    own: Any = run.recipe.workers[0], student, training_data, exchange, generation
    loop = StudentLoop(run, *own, stop=lambda: False, keeper=SimpleNamespace())  # type: ignore[arg-type]
    assert loop.run_rounds() is Flag.REFORM
    return student, exchange


@pytest.mark.parametrize(("method", "early"), [("none", True), ("linear", False)])
def test_who_learns_alone_does_not_wait_with_the_backward_pass(
    method: str, early: bool, make_recipe: MakeRecipe, make_run: Callable[..., Run]
) -> None:
    run = make_run(make_recipe(f"distillation.method={method}"))
    exchange = run_loop(TrainingData.open(run.recipe), run)[1]
    assert exchange.had_gradient == [early] * STEPS


def test_who_is_left_out_takes_back_what_it_has_done(
    make_recipe: MakeRecipe, make_run: Callable[..., Run]
) -> None:
    run = make_run(make_recipe("distillation.method=none"))
    training_data = TrainingData.open(run.recipe)
    found, expected = run_loop(training_data, run, left_out=1)[0], Student.of(training_data, 0, device=CPU)
    for step, batch in zip(range(STEPS), training_data.training_batches(0, 0), strict=False):
        logits = expected.forward(batch.inputs, step)
        if step == 1:
            expected.undo_forward()
            continue
        losses = expected.loss(logits, batch.loss_labels, None)
        expected.learn(losses.total, expected.lr(step, training_data.schedule.steps_per_epoch))
    assert_same(found.state_dict()["model"], expected.state_dict()["model"])

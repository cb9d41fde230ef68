"""The dry run: it names what is wrong with a network, and leaves the student as it was."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from cohorts import MakeRecipe, assert_same
from torch import Tensor, nn

from kdcl_dist.data.training_data import TrainingData
from kdcl_dist.errors import ModelError
from kdcl_dist.student.dry_run import check_output, dry_run, try_step
from kdcl_dist.student.student import Student

IMAGES, LABELS = torch.zeros(2, 1, 8, 8), torch.tensor([0, 1])


class Network(nn.Module):
    """A linear layer with a function of its logits and its mode."""

    def __init__(self, change: Callable[[Tensor, bool], Any]) -> None:
        super().__init__()
        self.linear, self.change = nn.Linear(64, 4), change

    def forward(self, x: Tensor) -> Any:
        return self.change(self.linear(x.flatten(1)), self.training)


def student_of(make_recipe: MakeRecipe, *overrides: str) -> Student:
    return Student(make_recipe(*overrides), 0, classes=4, channels=1, device=torch.device("cpu"))


def with_network(make_recipe: MakeRecipe, change: Callable[[Tensor, bool], Any]) -> Student:
    student = student_of(make_recipe)
    student.model = Network(change)
    return student


def fails(*_: Any) -> Tensor:
    raise ZeroDivisionError("a user's mistake\nin two lines")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (fails, ["fails on images of shape (2, 1, 8, 8)", "ZeroDivisionError: a user's mistake"]),
        (lambda z, _: z[:, :3], ["returns (2, 3)", "logits of shape (2, 4): 4 classes"]),
        (lambda z, _: z[:1], ["returns (1, 4)", "logits of shape (2, 4)"]),
        (lambda z, _: z[:, :, None], ["returns (2, 4, 1)"]),
        (lambda z, _: (z, z), ["returns tuple"]),
        (lambda z, _: None, ["returns NoneType"]),
    ],
)
def test_a_wrong_output_is_named(
    change: Callable[[Tensor, bool], Any], words: list[str], make_recipe: MakeRecipe
) -> None:
    student = with_network(make_recipe, change)
    with pytest.raises(ModelError) as caught:
        check_output(student, IMAGES)
    message = str(caught.value)
    assert (caught.value.student, caught.value.exit_code) == ("a", 2)
    assert "\n" not in message
    assert all(word in message for word in ["'cnn_small'", *words]), message
    assert student.model.training, "the mode is the one before"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda z, training: fails() if training else z, "ZeroDivisionError: a user's mistake"),
        (lambda z, training: z.detach(), "does not require grad"),
    ],
)
def test_a_step_that_fails_is_named(
    change: Callable[[Tensor, bool], Any], words: str, make_recipe: MakeRecipe
) -> None:
    student = with_network(make_recipe, change)
    check_output(student, IMAGES)
    with pytest.raises(ModelError, match=words) as caught:
        try_step(student, IMAGES, LABELS)
    assert "cannot take a training step on images of shape (2, 1, 8, 8)" in str(caught.value)


def test_a_teacher_takes_no_step(make_recipe: MakeRecipe) -> None:
    student = with_network(make_recipe, lambda z, training: z.detach())
    student.frozen = True
    try_step(student, IMAGES, LABELS)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_student_stays_as_it_was(precision: str, make_recipe: MakeRecipe) -> None:
    student = student_of(make_recipe, f"students.a.precision={precision}")
    before = copy.deepcopy(student.state_dict())
    dry_run(student, TrainingData.open(student.recipe), 0)
    assert_same(student.state_dict()["model"], before["model"])
    assert student.state_dict()["optimizer"] == before["optimizer"]
    assert student.model.training
    assert all(parameter.grad is None for parameter in student.model.parameters())

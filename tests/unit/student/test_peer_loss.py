"""A method of one's own with peers: what it is given, and what is wrong with it."""

from __future__ import annotations

import math

import pytest
import torch
from cohorts import MakeRecipe

from examples.custom import right
from kdcl_dist.distillation.methods import Context
from kdcl_dist.errors import MethodError, RecipeError
from kdcl_dist.student.dry_run import random_loss, try_step
from kdcl_dist.student.student import Student


def student_of(make_recipe: MakeRecipe, method: str, *more: str) -> Student:
    recipe = make_recipe(f"distillation.method={method}", *more)
    return Student(recipe, 0, classes=4, channels=1, device=torch.device("cpu"))


def batch(peers: int = 2) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    logits_BC = torch.randn(6, 4, generator=generator, requires_grad=True)
    return logits_BC, torch.randn(peers, 6, 4, generator=generator), torch.arange(6) % 4


def test_its_loss_has_the_weight_of_the_recipe(make_recipe: MakeRecipe) -> None:
    student = student_of(
        make_recipe, "{name: 'nets:sure', power: 3.0, peers: true}", "distillation.weight=0.5"
    )
    logits_BC, peers_PBC, labels_B = batch()
    losses = student.loss(logits_BC, labels_B, peers_PBC)
    own = 3 * min(((logits_BC - peer_BC) ** 2).mean() for peer_BC in peers_PBC)
    assert losses.task == torch.nn.functional.cross_entropy(logits_BC, labels_B)
    assert losses.distillation.item() == pytest.approx(own.item())
    assert losses.total.item() == pytest.approx(losses.task.item() + 0.5 * own.item())


def test_without_peers_it_is_not_called(make_recipe: MakeRecipe) -> None:
    student = student_of(make_recipe, "{name: 'nets:per_sample', peers: true}", "students.b=null")
    logits_BC, _, labels_B = batch()
    assert random_loss(student, logits_BC, labels_B).distillation == 0


def test_the_example_equals_a_loop_over_samples() -> None:
    logits_BC, peers_PBC, labels_B = batch()
    expected = 0.0
    for z, y, *others in zip(logits_BC, labels_B.tolist(), *peers_PBC, strict=True):
        for other in others:
            p, q = (other / 2).softmax(0).tolist(), (z / 2).softmax(0).tolist()
            if max(p) == p[y]:
                expected += 4 * sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)) / 12
    found = right.loss(logits_BC, peers_PBC, labels_B, 2.0, Context())
    assert expected > 0
    assert found.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("method", "words"),
    [
        ("nets:per_sample", ["(6,)", "tensor of shape ()", "take its mean"]),
        ("nets:plain_number", ["got float"]),
        ("nets:cut_off", ["no gradient", "logits_BC"]),
        ("nets:remembers", ["context.state is not kept"]),
        ("nets:sharpened", ["step 0", "AttributeError"]),
        ("nets:absent", ["no attribute"]),
        ("nets:os", ["module is not callable"]),
        ("nets:sure, typo: 1", ["typo"]),
    ],
)
def test_mistakes_are_found_in_the_rehearsal(method: str, words: list[str], make_recipe: MakeRecipe) -> None:
    def rehearse() -> None:
        student = student_of(make_recipe, f"{{name: {method}, peers: true}}")
        try_step(student, torch.randn(6, 1, 8, 8), torch.arange(6) % 4)

    with pytest.raises(MethodError) as caught:
        rehearse()
    message = str(caught.value)
    name = method.partition(",")[0]
    assert all(word in message for word in [f"distillation.method {name!r}", *words]), message
    assert "\n" not in message
    assert caught.value.exit_code == 2


def test_a_mistake_in_the_middle_names_method_and_step(make_recipe: MakeRecipe) -> None:
    student = student_of(make_recipe, "{name: 'nets:nan_loss_later', peers: true}")
    logits_BC, peers_PBC, labels_B = batch()
    student.loss(logits_BC, labels_B, peers_PBC, None, Context(2, students=("b",), student="a"))
    with pytest.raises(MethodError, match=r"nets:nan_loss_later', step 3: ValueError: the loss is nan"):
        student.loss(logits_BC, labels_B, peers_PBC, None, Context(3, students=("b",), student="a"))


@pytest.mark.parametrize(
    ("distillation", "words"),
    [
        ("{method: {name: 'nets:sure', peers: true}, window: 2}", ["'nets:sure'", "needs window 1 (got 2)"]),
        ("{method: {name: 'nets:sure', peers: 1}}", ["distillation.method", "peers", "boolean"]),
        ("{method: {name: dml, peers: true}}", ["distillation.method"]),
    ],
)
def test_mistakes_in_a_recipe(distillation: str, words: list[str], make_recipe: MakeRecipe) -> None:
    with pytest.raises(RecipeError) as caught:
        make_recipe(f"distillation={distillation}")
    assert all(word in str(caught.value) for word in words), caught.value

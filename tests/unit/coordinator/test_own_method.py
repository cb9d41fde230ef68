"""A distillation method of one's own: what it is given, what it may keep, and what is wrong with it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from cohorts import MakeRecipe

from examples.custom import recent
from kdcl_dist.coordinator.aggregator import Aggregator
from kdcl_dist.distillation.methods import METHODS, Context
from kdcl_dist.distillation.soft_target import log_soft_target
from kdcl_dist.errors import MethodError, RecipeError
from kdcl_dist.exchange.message import Contribution


def logits(seed: int = 0, students: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels_B = torch.randint(4, (6,), generator=generator)
    return torch.randn(students, 6, 4, generator=generator), labels_B


def aggregator(make_recipe: MakeRecipe, method: str, *more: str) -> Aggregator:
    found = Aggregator(make_recipe(f"distillation.method={method}", *more))
    found.load_method(4)
    return found


def parts(seed: int) -> list[Contribution]:
    logits_SBC, labels_B = logits(seed)
    return [Contribution(torch.arange(6), labels_B, logits_BC) for logits_BC in logits_SBC]


def test_it_is_given_the_step_and_keeps_its_state(make_recipe: MakeRecipe) -> None:
    ours = aggregator(make_recipe, "{name: 'nets:sharpened', power: 3.0}")
    assert ours.method_state == {}, "the trial leaves no trace"
    for step in range(3):
        target = ours.answer(parts(step), step, 0).target
        assert target is not None
        expected = F.log_softmax((1 + 3.0 / (step + 1)) * logits(step)[0].mean(dim=0) / 2.0, dim=1)
        assert torch.equal(target.log_probabilities, expected)
    resumed = aggregator(make_recipe, "{name: 'nets:sharpened', power: 3.0}")
    resumed.load_state_dict(ours.state_dict())
    again, straight = (each.answer(parts(3), 3, 0).target for each in (resumed, ours))
    assert again is not None
    assert straight is not None
    assert torch.equal(again.log_probabilities, straight.log_probabilities)


def test_built_in_methods_keep_their_checkpoints(make_recipe: MakeRecipe) -> None:
    assert set(aggregator(make_recipe, "linear").state_dict()) == {"names", "weights"}


def test_only_students_that_are_present_are_given() -> None:
    given = []

    def method(
        logits_SBC: torch.Tensor, labels_B: torch.Tensor, temperature: float, context: Context
    ) -> torch.Tensor:
        given.append((context.students, tuple(logits_SBC.shape), context.epoch))
        return F.log_softmax(logits_SBC[0], dim=1)

    logits_SBC, labels_B = logits(students=3)
    present_SB = torch.ones(3, 6, dtype=torch.bool)
    present_SB[1, 2:] = False
    context = Context(7, 2, ("a", "b", "c"))
    log_soft_target(method, logits_SBC, labels_B, 1.0, None, present_SB, context)
    assert sorted(given) == [(("a", "b", "c"), (3, 2, 4), 2), (("a", "c"), (2, 4, 4), 2)]


@pytest.mark.parametrize("name", METHODS)
def test_every_method_that_is_built_in_is_a_name_of_recipes(name: str, make_recipe: MakeRecipe) -> None:
    teacher = ["distillation.teacher=a", "students.a.weights=a.pt"] if METHODS[name].teacher else []
    recipe = make_recipe(f"distillation.method={name}", "data.holdout_per_class=1", *teacher)
    assert (recipe.distillation.method_name, recipe.distillation.own_method) == (name, None)


@pytest.mark.parametrize(
    ("method", "words"),
    [
        ("nets:probabilities", ["nets:probabilities", "row 0 have the sum", "log_softmax"]),
        ("nets:per_student", ["nets:per_student", "(2, 5, 4)", "shape (5, 4) are needed"]),
        ("nets:names_only", ["nets:names_only", "got str"]),
        ("nets:absent", ["nets:absent", "no attribute"]),
        ("no_such_module:x", ["no_such_module"]),
        ("{name: 'nets:sharpened', typo: 1}", ["nets:sharpened", "typo"]),
        ("nets:os", ["nets:os", "module is not callable"]),
    ],
)
def test_mistakes_are_found_before_the_first_step(
    method: str, words: list[str], make_recipe: MakeRecipe
) -> None:
    with pytest.raises(MethodError) as caught:
        aggregator(make_recipe, method)
    message = str(caught.value)
    assert all(word in message for word in words), message
    assert "\n" not in message
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("method", "words"),
    [
        ("liner", ["distillation.method", "'liner' is unknown", "have linear, none"]),
        ("{name: linear}", ["distillation.method"]),
        ("3", ["distillation.method", "3"]),
        ("{power: 3}", ["distillation.method"]),
    ],
)
def test_mistakes_in_a_recipe(method: str, words: list[str], make_recipe: MakeRecipe) -> None:
    with pytest.raises(RecipeError) as caught:
        make_recipe(f"distillation.method={method}")
    assert all(word in str(caught.value) for word in words), caught.value


def test_a_mistake_in_the_middle_names_method_and_step(make_recipe: MakeRecipe) -> None:
    ours = aggregator(make_recipe, "nets:nan_later")
    for step in range(3):
        ours.answer(parts(step), step, 0)
    with pytest.raises(MethodError, match=r"nets:nan_later', step 3: .* row 0 have the sum nan"):
        ours.answer(parts(3), 3, 0)


def test_the_example_equals_a_loop_over_samples() -> None:
    context, recent_loss = Context(students=("a", "b")), [-1.0, -1.0]
    for step in range(4):
        logits_SBC, labels_B = logits(step)
        found = recent.target(logits_SBC, labels_B, 2.0, context, memory=0.8)
        for student, own in enumerate(logits_SBC):
            loss = sum(-float(row.log_softmax(0)[y]) for row, y in zip(own, labels_B, strict=True)) / 6
            past = recent_loss[student]
            recent_loss[student] = loss if past < 0 else 0.8 * past + 0.2 * loss
        weights = torch.softmax(-torch.tensor(recent_loss), dim=0)
        for row in range(6):
            mixed = sum(float(w) * (z[row] / 2).softmax(0) for w, z in zip(weights, logits_SBC, strict=True))
            assert torch.allclose(found[row].exp(), torch.as_tensor(mixed), atol=1e-6)

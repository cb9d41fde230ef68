"""The recipe's loss as a student calls it: of the table with its fields, or of one's own."""

from __future__ import annotations

import pytest
import torch
from cohorts import MakeRecipe

from kdcl_dist.config.recipe_file import parse_recipe
from kdcl_dist.distillation.divergences import LOSSES
from kdcl_dist.errors import MethodError, RecipeError
from kdcl_dist.student.student_loss import StudentLoss


def loss_of(make_recipe: MakeRecipe, loss: str, *more: str) -> StudentLoss:
    recipe = make_recipe(f"distillation.loss={loss}", *more)
    return StudentLoss(recipe.distillation, recipe.students[0], torch.device("cpu"))


def batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    logits_BC, other_BC = torch.randn(2, 6, 4, generator=generator)
    return logits_BC.requires_grad_(), (other_BC / 2).log_softmax(dim=1), torch.arange(6) % 4


def test_it_has_the_fields_and_the_weight_of_the_recipe(make_recipe: MakeRecipe) -> None:
    logits_BC, log_p_BC, labels_B = batch()
    log_q_BC = (logits_BC / 2).log_softmax(dim=1)
    for text, fields in (
        ("dkd", {"alpha": 1.0, "beta": 8.0}),
        ("{name: dkd, beta: 0.5}", {"alpha": 1.0, "beta": 0.5}),
    ):
        losses = loss_of(make_recipe, text, "distillation.weight=0.5")(logits_BC, labels_B, log_p_BC)
        expected = 4 * LOSSES["dkd"].function(log_q_BC, log_p_BC, labels_B, 2.0, **fields) / 6
        assert losses.distillation.item() == pytest.approx(expected.item())
        assert losses.total.item() == pytest.approx(losses.task.item() + 0.5 * expected.item())


def test_one_of_ones_own_is_given_what_it_needs(make_recipe: MakeRecipe) -> None:
    logits_BC, log_p_BC, labels_B = batch()
    losses = loss_of(make_recipe, "{name: 'nets:hard', power: 2.0}")(logits_BC, labels_B, log_p_BC)
    log_q_BC, expected = (logits_BC / 2).log_softmax(dim=1), 0.0
    for log_q_C, log_p_C in zip(log_q_BC.tolist(), log_p_BC.exp().tolist(), strict=True):
        terms = [p * (torch.tensor(p).log().item() - q) for p, q in zip(log_p_C, log_q_C, strict=True)]
        expected += (1 - max(log_p_C)) ** 2 * sum(terms)
    assert losses.distillation.item() == pytest.approx(4 * expected / 6, rel=1e-5)
    assert torch.autograd.grad(losses.distillation, logits_BC)[0].abs().sum() > 0


def test_a_method_with_peers_has_it_in_its_context(make_recipe: MakeRecipe) -> None:
    logits_BC, log_p_BC, labels_B = batch()
    peers_PBC = torch.stack([log_p_BC, log_p_BC.flip(1)])
    losses = loss_of(make_recipe, "bdkd", "distillation.method=dml")(logits_BC, labels_B, peers_PBC)
    log_q_BC, function = logits_BC.log_softmax(dim=1), LOSSES["bdkd"].function
    each = [
        function(log_q_BC, peer_BC.log_softmax(dim=1), labels_B, 1.0, larger=2.0, smaller=1.0) / 6
        for peer_BC in peers_PBC
    ]
    assert losses.distillation.item() == pytest.approx(torch.stack(each).mean().item())


@pytest.mark.parametrize(
    ("loss", "words"),
    [
        ("'nets:loss_rows'", ["(6,)", "tensor of shape ()", "take its sum"]),
        ("'nets:loss_without_gradient'", ["no gradient", "log_q_BC"]),
        ("'nets:absent'", ["cannot be loaded", "no attribute"]),
        ("'nets:os'", ["cannot be loaded", "module is not callable"]),
        ("{name: 'nets:hard', typo: 1}", ["typo"]),
        ("'no_such_module:x'", ["cannot be loaded", "no_such_module"]),
    ],
)
def test_mistakes_of_ones_own(loss: str, words: list[str], make_recipe: MakeRecipe) -> None:
    logits_BC, log_p_BC, labels_B = batch()
    with pytest.raises(MethodError) as caught:
        loss_of(make_recipe, loss)(logits_BC, labels_B, log_p_BC)
    message = str(caught.value)
    assert message.startswith("distillation.loss '")
    assert all(word in message for word in words), message
    assert "\n" not in message
    assert caught.value.exit_code == 2


def test_one_that_is_not_finite_is_named(make_recipe: MakeRecipe) -> None:
    logits_BC, log_p_BC, labels_B = batch()
    loss = loss_of(make_recipe, "'nets:hard'", "distillation.temperature=1.0")
    with pytest.raises(MethodError, match=r"distillation.loss 'nets:hard': ValueError: the loss is nan"):
        loss(logits_BC, labels_B, log_p_BC)


@pytest.mark.parametrize(
    ("loss", "words"),
    [
        ("dk", "'dk' is unknown: have kl, standardised, dkd, bdkd, or an import string"),
        ("3", "must be the name of a loss"),
        ("null", "must be the name of a loss"),
        ("{beta: 2.0}", "distillation.loss.beta: unknown field here"),
        ("{name: dkd, beta: -1.0}", "distillation.loss.beta: .*greater than or equal to 0 .got -1.0"),
        ("{name: dkd, alpha: .inf}", "distillation.loss.alpha: .*finite"),
        ("{name: dkd, alpha: '1'}", "distillation.loss.alpha: .*number .got '1'"),
        ("{name: dkd, gamma: 1.0}", "distillation.loss.gamma: unknown field here"),
        ("{name: standardised, beta: 1.0}", "distillation.loss.beta: unknown field here"),
        ("{name: bdkd, smaller: 3.0}", "distillation.loss: smaller: 3.0 is more than larger, which is 2.0"),
    ],
)
def test_mistakes_in_a_recipe(loss: str, words: str, make_recipe: MakeRecipe) -> None:
    with pytest.raises(RecipeError, match=words) as caught:
        make_recipe(f"distillation.loss={loss}")
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


def test_a_name_alone_is_stored_with_all_fields(make_recipe: MakeRecipe) -> None:
    recipe = make_recipe("distillation.loss=dkd")
    assert "    name: dkd\n    alpha: 1.0\n    beta: 8.0\n" in str(recipe)
    assert parse_recipe(str(recipe)) == recipe
    assert make_recipe().distillation.loss.name == "kl"

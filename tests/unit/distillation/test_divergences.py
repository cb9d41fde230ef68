"""The distillation losses against scalar loops in pure Python. Shapes: B batch, C classes, P peers."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from functools import partial
from typing import get_args

import pytest
import torch
from torch import Tensor

from kdcl_dist.config import losses as config
from kdcl_dist.distillation.divergences import LOSSES, balanced, decoupled, kl, standardised
from kdcl_dist.distillation.ensembles import general_log
from kdcl_dist.distillation.losses import distillation_loss, dml_loss, kdcl_loss, mutual_loss

FIELDS: dict[str, dict[str, float]] = {
    "dkd": {"alpha": 0.7, "beta": 3.0},
    "bdkd": {"larger": 2.5, "smaller": 0.4},
}
LATER = [name for name in LOSSES if name != "kl"]


def divergence(name: str, **fields: float) -> Callable[..., Tensor]:
    return partial(LOSSES[name].function, **{**FIELDS.get(name, {}), **fields})


def draw(seed: int, batch: int, classes: int, scale: float = 2.0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    z_BC, v_BC = scale * torch.randn(2, batch, classes, generator=generator, dtype=torch.float64)
    return z_BC, v_BC, torch.randint(classes, (batch,), generator=generator)


def softmax(row: list[float], temperature: float = 1.0) -> list[float]:
    parts = [math.exp((value - max(row)) / temperature) for value in row]
    return [part / math.fsum(parts) for part in parts]


def slow_kl(p: list[float], q: list[float]) -> float:
    return math.fsum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def scores(row: list[float]) -> list[float]:
    mean = math.fsum(row) / len(row)
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in row) / len(row))
    return [(value - mean) / deviation for value in row]


def entropy(p: list[float]) -> float:
    return -math.fsum(a * math.log(a) for a in p)


def slow(name: str, z: list[float], v: list[float], y: int, temperature: float) -> float:
    """The loss of one sample from both networks' logits, without T^2."""
    p, q = softmax(v, temperature), softmax(z, temperature)
    if name == "standardised":
        return slow_kl(softmax(scores(v), temperature), softmax(scores(z), temperature))
    if name == "dkd":
        binary = [[x[y], 1 - x[y]] for x in (p, q)]
        others = [[value / (1 - x[y]) for c, value in enumerate(x) if c != y] for x in (p, q)]
        return FIELDS[name]["alpha"] * slow_kl(*binary) + FIELDS[name]["beta"] * slow_kl(*others)
    if name == "bdkd":
        large, small = FIELDS[name].values()
        a, b = (small, large) if entropy(q) > entropy(p) else (large, small)
        return a * slow_kl(p, q) + b * slow_kl(q, p)
    return slow_kl(p, q)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("seed", range(8))
def test_equal_to_scalar_loops(name: str, seed: int) -> None:
    temperature = (0.5, 1.0, 2.0, 4.0)[seed % 4]
    z_BC, v_BC, labels_B = draw(seed, 1 + seed, 2 + 3 * seed)
    log_p_BC = (v_BC / temperature).log_softmax(dim=1)
    losses = kdcl_loss(z_BC, labels_B, log_p_BC, temperature, 0.3, divergence=divergence(name))
    rows = zip(z_BC.tolist(), v_BC.tolist(), labels_B.tolist(), strict=True)
    expected = temperature**2 * math.fsum(slow(name, *row, temperature) for row in rows) / len(labels_B)
    assert losses.distillation.item() == pytest.approx(expected, rel=1e-9, abs=1e-13)
    assert losses.total.item() == pytest.approx(losses.task.item() + 0.3 * expected, rel=1e-9)


@pytest.mark.parametrize("name", LOSSES)
def test_only_covered_samples_count(name: str) -> None:
    z_BC, v_BC, labels_B = draw(1, 6, 5)
    there = torch.tensor([0, 2, 5])
    options = {"divergence": divergence(name)}
    found = distillation_loss(z_BC, v_BC.log_softmax(1), 1.0, there, labels_B=labels_B, **options)
    alone = distillation_loss(
        z_BC[there], v_BC[there].log_softmax(1), 1.0, labels_B=labels_B[there], **options
    )
    assert found.item() == pytest.approx(alone.item() / 2)


@pytest.mark.parametrize("name", LOSSES)
def test_between_peers_it_is_the_mean_at_temperature_1(name: str) -> None:
    z_BC, _, labels_B = draw(2, 6, 5)
    peers_PBC = torch.stack([draw(seed, 6, 5)[1] for seed in (3, 4, 5)]).log_softmax(dim=2)
    found = mutual_loss(z_BC, peers_PBC, divergence=divergence(name), labels_B=labels_B)
    options = {"divergence": divergence(name), "labels_B": labels_B}
    each = [distillation_loss(z_BC, log_p_BC, 1.0, **options) for log_p_BC in peers_PBC]
    assert found.item() == pytest.approx(torch.stack(each).mean().item())
    assert (found == dml_loss(z_BC, labels_B, peers_PBC).distillation) == (name == "kl")


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_by_finite_differences(name: str) -> None:
    z_BC, v_BC, labels_B = draw(6, 4, 5)
    log_p_BC, there = (v_BC / 3).log_softmax(dim=1), torch.tensor([0, 1, 3])
    options = {"divergence": divergence(name)}
    for covered in (None, there):
        loss = partial(distillation_loss, labels_B=labels_B, covered_K=covered, **options)
        assert torch.autograd.gradcheck(lambda z, f=loss: f(z, log_p_BC, 3.0), z_BC.requires_grad_())


@pytest.mark.parametrize("name", LOSSES)
def test_zero_at_the_target_and_positive_elsewhere(name: str) -> None:
    z_BC, v_BC, labels_B = draw(7, 6, 9)
    options = {"divergence": divergence(name), "labels_B": labels_B}
    assert distillation_loss(z_BC, (z_BC / 2).log_softmax(dim=1), 2.0, **options).item() == pytest.approx(
        0, abs=1e-12
    )
    assert distillation_loss(z_BC, (v_BC / 2).log_softmax(dim=1), 2.0, **options).item() > 0.01


@pytest.mark.parametrize("name", LOSSES)
def test_the_target_is_a_constant(name: str) -> None:
    z_BC, v_BC, labels_B = draw(8, 4, 5)
    v_BC.requires_grad_()
    options = {"divergence": divergence(name), "labels_B": labels_B}
    distillation_loss(z_BC.requires_grad_(), v_BC.log_softmax(dim=1), 1.0, **options).backward()
    mutual_loss(z_BC, v_BC.log_softmax(dim=1)[None], **options).backward()
    assert v_BC.grad is None
    assert z_BC.grad is not None


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("scale", [1e-3, 2.0, 30.0])
def test_float32_is_close_to_float64(name: str, scale: float) -> None:
    z_BC, v_BC, labels_B = draw(9, 16, 100, scale)
    found = []
    for dtype in (torch.float32, torch.float64):
        leaf_BC = z_BC.to(dtype).requires_grad_()
        log_p_BC = (v_BC / 2).log_softmax(dim=1).to(dtype)
        loss = distillation_loss(leaf_BC, log_p_BC, 2.0, divergence=divergence(name), labels_B=labels_B)
        loss.backward()
        assert leaf_BC.grad is not None
        found.append((loss.item(), leaf_BC.grad.double()))
    (loss32, gradient32), (loss64, gradient64) = found
    assert loss32 == pytest.approx(loss64, rel=2e-3, abs=1e-5)
    assert float((gradient32 - gradient64).norm() / gradient64.norm()) < 1e-2


def test_the_parts_of_dkd_are_kl() -> None:
    """KL = TCKD + (1 - p_t) NCKD, sample by sample (their eq. 6)."""
    z_BC, v_BC, labels_B = draw(10, 7, 6)
    log_q_BC, log_p_BC = z_BC.log_softmax(dim=1), v_BC.log_softmax(dim=1)
    for row in range(7):
        one = slice(row, row + 1)
        beta = 1 - float(log_p_BC[row, labels_B[row]].exp())
        arguments = log_q_BC[one], log_p_BC[one], labels_B[one], 1.0
        assert decoupled(*arguments, alpha=1.0, beta=beta).item() == pytest.approx(
            kl(*arguments).item(), rel=1e-10
        )


def test_dkd_does_not_see_the_order_of_the_other_classes() -> None:
    z_BC, v_BC, labels_B = draw(11, 5, 4)
    places = torch.tensor([2, 0, 3, 1])
    found = decoupled(z_BC.log_softmax(1), v_BC.log_softmax(1), labels_B, 1.0, alpha=1.0, beta=2.0)
    moved = [x_BC.log_softmax(1)[:, places] for x_BC in (z_BC, v_BC)]
    assert decoupled(*moved, places.argsort()[labels_B], 1.0, alpha=1.0, beta=2.0).item() == pytest.approx(
        found.item()
    )


def test_dkd_needs_classes() -> None:
    z_BC, v_BC, _ = draw(11, 5, 4)
    with pytest.raises(ValueError, match="labels_B: the loss needs the true classes"):
        distillation_loss(z_BC, v_BC.log_softmax(1), 1.0, divergence=divergence("dkd"))


def test_standardised_logits_have_no_size_and_no_zero() -> None:
    z_BC, v_BC, labels_B = draw(12, 5, 6)
    first = distillation_loss(z_BC, (v_BC / 2).log_softmax(dim=1), 2.0, divergence=standardised)
    for factor, shift, softened in ((0.1, 3.0, 2.0), (7.0, -40.0, 5.0)):
        log_p_BC = ((0.3 * factor * v_BC - shift) / softened).log_softmax(dim=1)
        again = distillation_loss(factor * z_BC + shift, log_p_BC, 2.0, divergence=standardised)
        assert again.item() == pytest.approx(first.item(), rel=1e-9)
    assert kl(z_BC.log_softmax(1), (2 * z_BC).log_softmax(1), labels_B, 1.0) > 0.1


def test_standardised_mixture_of_probabilities() -> None:
    """The logits of the soft target of `general` are the logarithms of its probabilities."""
    z_BC, v_BC, labels_B = draw(13, 3, 4)
    log_p_BC = general_log(torch.stack([z_BC, v_BC]), torch.tensor([0.3, 0.7], dtype=torch.float64), 2.0)
    found = distillation_loss(z_BC, log_p_BC, 2.0, divergence=standardised)
    rows = zip(z_BC.tolist(), log_p_BC.tolist(), labels_B.tolist(), strict=True)
    expected = 4 * math.fsum(slow("standardised", *row, 2.0) for row in rows) / 3
    assert found.item() == pytest.approx(expected, rel=1e-9)


def test_equal_logits_have_no_standard_and_no_gradient() -> None:
    """As of a head that begins with zeros."""
    _, v_BC, _ = draw(14, 3, 10)
    z_BC = torch.full((3, 10), 0.3, requires_grad=True)
    for log_p_BC in (v_BC.log_softmax(dim=1), torch.zeros(3, 10).log_softmax(dim=1)):
        loss = distillation_loss(z_BC, log_p_BC, 2.0, divergence=standardised)
        (gradient_BC,) = torch.autograd.grad(loss, z_BC)
        assert torch.isfinite(loss)
        assert torch.equal(gradient_BC, torch.zeros(3, 10))


def test_bdkd_takes_the_side_of_the_entropies() -> None:
    _, v_BC, labels_B = draw(15, 8, 6)
    log_p_BC, flat_BC, sharp_BC = (x.log_softmax(dim=1) for x in (v_BC, 0.2 * v_BC, 5 * v_BC))
    alone = {"larger": 1.0, "smaller": 0.0}
    wide = balanced(flat_BC, log_p_BC, labels_B, 1.0, **alone)
    assert wide.item() == pytest.approx(kl(log_p_BC, flat_BC, labels_B, 1.0).item()), "KL(q || p)"
    narrow = balanced(sharp_BC, log_p_BC, labels_B, 1.0, **alone)
    assert narrow.item() == pytest.approx(kl(sharp_BC, log_p_BC, labels_B, 1.0).item()), "KL(p || q)"
    assert balanced(flat_BC, log_p_BC, labels_B, 1.0, larger=2.0, smaller=2.0).item() == pytest.approx(
        2 * float(kl(flat_BC, log_p_BC, labels_B, 1.0) + kl(log_p_BC, flat_BC, labels_B, 1.0))
    )


def test_recipes_have_the_fields_of_the_losses() -> None:
    models = [
        kind.__origin__
        for kind in get_args(get_args(config.Loss)[0])
        if kind.__origin__ is not config.OwnLoss
    ]
    assert [model().name for model in models] == list(LOSSES)
    for model in models:
        function = LOSSES[model().name].function
        own = [p.name for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY]
        assert list(model().model_dump(exclude={"name"})) == own

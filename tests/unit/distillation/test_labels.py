"""Class probabilities as labels: the ensembles and the analysis against slow computations."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.special import log_softmax, logsumexp
from simplex_reference import smallest_over_simplex
from torch import Tensor

from kdcl_dist import ensembles as E
from kdcl_dist.distillation.diagnostics import measure
from kdcl_dist.distillation.labels import largest_class, two_hot
from kdcl_dist.distillation.losses import dml_loss, kdcl_loss, task_loss


def case(seed: int, S: int, B: int, C: int, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, classes, and class probabilities: two-hot ones and, in every third row, any."""
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(S, B, C, generator=generator)
    one, other = torch.randint(C, (2, B), generator=generator)
    labels = two_hot(one, other, float(torch.rand((), generator=generator)), C)
    labels[::3] = torch.rand(labels[::3].shape, generator=generator).softmax(dim=1)
    return logits, one, labels


def cross_entropy(row: np.ndarray, p: np.ndarray) -> float:
    return -math.fsum((p * log_softmax(row)).tolist())


def test_two_hot_labels() -> None:
    found = two_hot(torch.tensor([0, 2, 1]), torch.tensor([1, 2, 0]), 0.25, 3)
    assert found.tolist() == [[0.25, 0.75, 0], [0, 0, 1], [0.75, 0.25, 0]]
    assert largest_class(found).tolist() == [1, 2, 0]


@pytest.mark.parametrize("scale", [0.1, 3.0, 100.0, 1e4])
@pytest.mark.parametrize("students", [1, 2, 3, 5])
def test_ensembles_against_slow_minimisers(students: int, scale: float) -> None:
    logits, _, labels = case(students, students, 12, 7, scale)
    z, p = logits.double().numpy(), labels.double().numpy()
    weights, slack = E.linear_weights(logits, labels).numpy(), 1e-6 * (1 + scale)
    naive, linear = E.naive(logits, labels).double().numpy(), E.linear(logits.double(), labels).numpy()
    for b in range(12):
        losses = [cross_entropy(row, p[b]) for row in z[:, b]]
        assert any(np.array_equal(naive[b], row) for row in z[:, b])
        assert cross_entropy(naive[b], p[b]) <= min(losses) + slack

        def value(a: np.ndarray, b: int = b) -> float:
            return float(logsumexp(a @ z[:, b]) - p[b] @ (a @ z[:, b]))

        def gradient(a: np.ndarray, b: int = b) -> np.ndarray:
            q = np.exp(log_softmax(a @ z[:, b]))
            return z[:, b] @ (q - p[b])

        a, g = weights[:, b], gradient(weights[:, b])
        assert abs(a.sum() - 1) < 1e-9
        assert a.min() >= 0
        assert a @ g - g.min() <= 1e-5 * (1 + scale / 100), "the gap to the minimum"
        assert cross_entropy(linear[b], p[b]) <= min(losses) + slack
        if scale <= 3:
            assert value(a) == pytest.approx(smallest_over_simplex(value, gradient, students), abs=2e-7)


@pytest.mark.parametrize("method", ["naive", "linear", "mean", "general"])
def test_certain_probabilities_are_classes(method: str) -> None:
    logits, classes, _ = case(1, 3, 20, 9, 2.0)
    weights = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
    one_hot = F.one_hot(classes, 9).float()
    found, expected = (E.log_soft_target(method, logits, y, 2.0, weights) for y in (one_hot, classes))
    assert torch.allclose(found, expected, atol=1e-6)


def test_absent_students_take_no_part() -> None:
    logits, _, labels = case(2, 3, 10, 5, 2.0)
    present = torch.ones(3, 10, dtype=torch.bool)
    present[1] = False
    for method in ("naive", "linear", "mean"):
        found = E.log_soft_target(method, logits, labels, 2.0, present_SB=present)
        assert torch.equal(found, E.log_soft_target(method, logits[[0, 2]], labels, 2.0))


def test_min_logit_is_refused() -> None:
    """The smallest logits relative to the expected one can have a larger loss than a student."""
    z, p = torch.tensor([[[0.0, 8.0, 8.0]], [[8.0, 0.0, 8.0]]]), torch.tensor([[0.9, 0.1, 0.0]])
    smallest = (z - (z * p).sum(dim=2, keepdim=True)).amin(dim=0)
    assert F.cross_entropy(smallest, p) > F.cross_entropy(z[1], p) + 0.5
    with pytest.raises(ValueError, match="min_logit needs one true class"):
        E.min_logit(z, p)


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (torch.ones(4, 5), "sum 1"),
        (torch.tensor([[1.5, -0.5, 0, 0, 0]] * 4), "non-negative"),
        (torch.full((4, 5), math.nan), "non-negative"),
        (torch.full((4, 6), 1 / 6), r"class probabilities of shape \(4, 5\).*\(4, 6\)"),
        (torch.eye(5)[:4].long(), "class probabilities"),
        (torch.zeros(4), "int64 of shape"),
    ],
)
def test_labels_that_do_not_fit_are_refused(labels: Tensor, words: str) -> None:
    for method in (E.naive, E.linear, E.mean):
        with pytest.raises(ValueError, match=f"labels_B: .*{words}"):
            method(torch.zeros(2, 4, 5), labels)


def test_figures_of_mixed_samples() -> None:
    logits, _, labels = case(3, 3, 30, 5, 2.0)
    names, weights = ["a", "b", "c"], torch.full((3,), 1 / 3, dtype=torch.float64)
    found = measure(names, logits, labels, 2.0, weights)
    assert not any(name.startswith("min_logit") for name in found.ensembles)
    z, p = logits.double().numpy(), labels.double().numpy()
    losses = np.array([[cross_entropy(row, p[b]) for b, row in enumerate(own)] for own in z])
    assert found.ensembles["naive_loss"] == pytest.approx(losses.min(axis=0).mean(), abs=1e-6)
    mean = [cross_entropy(z[:, b].mean(axis=0), p[b]) for b in range(30)]
    assert found.ensembles["mean_loss"] == pytest.approx(np.mean(mean), abs=1e-6)
    mixed = [logsumexp(log_softmax(z[:, b], axis=1), axis=0) - math.log(3) for b in range(30)]
    general = [-(p[b] @ mixed[b]) for b in range(30)]
    assert found.ensembles["general_loss"] == pytest.approx(np.mean(general), abs=1e-6)
    assert found.ensembles["linear_loss"] <= found.ensembles["naive_loss"]
    for index, name in enumerate(names):
        wins = (losses.argmin(axis=0) == index).mean()
        wrong = (z[index].argmax(axis=1) != p.argmax(axis=1)).mean()
        assert found.students[name]["win_share"] == pytest.approx(wins)
        assert found.students[name]["error"] == pytest.approx(wrong)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("mixed", [False, True])
def test_class_weights_are_torchs_divided_by_the_samples(mixed: bool, smoothing: float) -> None:
    logits, classes, probabilities = case(4, 1, 8, 5, 2.0)
    z, y, w = logits[0], probabilities if mixed else classes, torch.tensor([0.5, 2.0, 1.0, 3.0, 0.1])
    found = task_loss(z, y, label_smoothing=smoothing, class_weights_C=w)
    torchs = F.cross_entropy(z, y, w, reduction="sum", label_smoothing=smoothing)
    assert found.item() == pytest.approx(torchs.item() / 8, rel=1e-6)
    p = (1 - smoothing) * (y if mixed else F.one_hot(y, 5)).double().numpy() + smoothing / 5
    slow = -(w.double().numpy() * p * log_softmax(z.double().numpy(), axis=1)).sum() / 8
    if mixed or not smoothing:
        assert found.item() == pytest.approx(slow, rel=1e-6)
    parts = [
        task_loss(z[part], y[part], label_smoothing=smoothing, class_weights_C=w)
        for part in (slice(4), slice(4, 8))
    ]
    assert torch.stack(parts).mean().item() == pytest.approx(found.item(), rel=1e-6), "replicas share it"


def test_the_distillation_loss_is_not_weighted() -> None:
    logits, classes, _ = case(5, 2, 8, 5, 2.0)
    log_p, w = logits[1].log_softmax(dim=1), torch.tensor([0.5, 2.0, 1.0, 3.0, 0.1])
    for loss in (
        lambda **options: kdcl_loss(logits[0], classes, log_p, 2.0, 0.7, **options),
        lambda **options: dml_loss(logits[0], classes, log_p[None], 0.7, **options),
    ):
        plain, weighted = loss(), loss(class_weights_C=w)
        assert torch.equal(weighted.distillation, plain.distillation)
        assert not torch.equal(weighted.task, plain.task)
        assert weighted.total.item() == pytest.approx(float(weighted.task + 0.7 * weighted.distillation))

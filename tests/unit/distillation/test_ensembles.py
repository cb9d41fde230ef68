"""Each ensemble against a slow, independent computation, and the properties that the paper's hold."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special
from simplex_reference import smallest_over_simplex
from torch import Tensor

from kdcl_dist import ensembles as E

SETTINGS = settings(max_examples=60, derandomize=True)


def random_case(seed: int, S: int, B: int, C: int, scale: float) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(S, B, C, generator=generator) * scale
    return logits, torch.randint(C, (B,), generator=generator)


cases = st.builds(
    random_case,
    st.integers(0, 10**6),
    st.integers(1, 8),
    st.integers(1, 40),
    st.sampled_from([2, 3, 10, 100, 1000]),
    st.sampled_from([0.0, 0.01, 1.0, 5.0, 100.0, 1e4]),
)


def cross_entropy(logits: list[float], label: int) -> float:
    top = max(logits)
    return top + math.log(math.fsum(math.exp(z - top) for z in logits)) - logits[label]


def ce(logits: Tensor, labels: Tensor) -> Tensor:
    logits = logits.double()
    return logits.logsumexp(-1) - logits.gather(-1, labels[:, None])[:, 0]


def kkt_gap(logits: Tensor, labels: Tensor, weights_SB: Tensor) -> Tensor:
    z = logits.double() - logits.double().gather(2, labels.expand(len(logits), -1)[:, :, None])
    p = torch.einsum("sb,sbc->bc", weights_SB, z).softmax(dim=1)
    g = torch.einsum("bc,sbc->sb", p, z)
    return (weights_SB * g).sum(dim=0) - g.amin(dim=0)


@SETTINGS
@given(cases)
def test_closed_forms_equal_scalar_loops(case: tuple[Tensor, Tensor]) -> None:
    logits, labels = case
    tolerance = 1e-6 * (1 + logits.abs().max().item())
    for b, label in enumerate(labels.tolist()[:4]):
        rows = [logits[s, b].tolist() for s in range(len(logits))]
        entropies = [cross_entropy(row, label) for row in rows]
        best = E.naive(logits, labels)[b].tolist()
        assert cross_entropy(best, label) <= min(entropies) + 1e-5 * (1 + abs(min(entropies)))
        assert best in rows
        lowest = [min(row[c] - row[label] for row in rows) for c in range(len(rows[0]))]
        assert E.min_logit(logits, labels)[b].tolist() == pytest.approx(lowest, abs=tolerance)
        average = [math.fsum(row[c] for row in rows) / len(rows) for c in range(len(rows[0]))]
        assert E.mean(logits, labels)[b].tolist() == pytest.approx(average, abs=tolerance)


@SETTINGS
@given(cases)
def test_each_is_at_least_as_good_as_the_next(case: tuple[Tensor, Tensor]) -> None:
    logits, labels = case
    slack = 1e-5 * (1 + logits.abs().max().item())
    smallest = ce(E.min_logit(logits.double(), labels), labels)
    linear = ce(E.linear(logits.double(), labels), labels)
    naive = ce(E.naive(logits.double(), labels), labels)
    each = torch.stack([ce(z, labels) for z in logits])
    assert (smallest <= linear + slack * 1e-6).all()
    assert (linear <= naive + 1e-9 * slack).all()
    assert (naive <= each.amin(dim=0) + slack).all()


@SETTINGS
@given(cases)
def test_linear_reaches_the_optimum(case: tuple[Tensor, Tensor]) -> None:
    logits, labels = case
    weights = E.linear_weights(logits, labels)
    assert (weights >= 0).all()
    assert torch.allclose(weights.sum(dim=0), torch.ones(len(labels), dtype=torch.float64), atol=1e-12)
    assert kkt_gap(logits, labels, weights).max() <= 1e-6


@pytest.mark.parametrize("students", [2, 3, 5, 8])
def test_linear_against_slsqp(students: int) -> None:
    logits, labels = random_case(students, students, 40, 10, 3.0)
    weights = E.linear_weights(logits, labels)
    for b, label in enumerate(labels.tolist()):
        z = logits[:, b].double().numpy()
        z = z - z[:, label : label + 1]

        def value(a: np.ndarray, z: np.ndarray = z) -> float:
            return float(np.logaddexp.reduce(a @ z))

        def gradient(a: np.ndarray, z: np.ndarray = z) -> np.ndarray:
            u = a @ z
            return z @ np.exp(u - np.logaddexp.reduce(u))

        assert value(weights[:, b].numpy()) <= smallest_over_simplex(value, gradient, students) + 1e-7


def test_clamp_and_renormalise_is_no_projection() -> None:
    """The shortcut of public code ends at a worse point than ours on the same problem."""
    logits, labels = random_case(3, 4, 64, 20, 4.0)
    z = logits.double() - logits.double().gather(2, labels.expand(4, -1)[:, :, None])
    a = torch.full((4, 64), 0.25, dtype=torch.float64)
    for _ in range(2000):
        p = torch.einsum("sb,sbc->bc", a, z).softmax(dim=1)
        a = (a - 0.05 * torch.einsum("bc,sbc->sb", p, z)).clamp(min=0)
        a = a / a.sum(dim=0).clamp(min=1e-12)
    shortcut = torch.einsum("sb,sbc->bc", a, z).logsumexp(dim=1)
    ours = torch.einsum("sb,sbc->bc", E.linear_weights(logits, labels), z).logsumexp(dim=1)
    assert (ours <= shortcut + 1e-9).all()
    assert (shortcut > ours + 1e-3).any()


def test_linear_does_not_depend_on_the_rest_of_the_batch() -> None:
    logits, labels = random_case(4, 3, 30, 10, 3.0)
    whole = E.linear_weights(logits, labels)
    alone = torch.cat([E.linear_weights(logits[:, b : b + 1], labels[b : b + 1]) for b in range(30)], dim=1)
    assert torch.allclose(whole, alone, atol=1e-5)


def test_equal_students_and_ties() -> None:
    one, labels = random_case(5, 1, 10, 7, 2.0)
    same = one.expand(4, -1, -1)
    for method in ("naive", "linear", "mean"):
        assert torch.allclose(getattr(E, method)(same, labels), one[0], atol=1e-6)
    assert torch.isfinite(E.linear_weights(same, labels)).all()
    tied = torch.stack([one[0], one[0]])
    assert torch.equal(E.naive(tied, labels), one[0])


@SETTINGS
@given(cases, st.sampled_from([0.5, 1.0, 2.0, 5.0]))
def test_general_equals_scalar_loops(case: tuple[Tensor, Tensor], temperature: float) -> None:
    logits, _ = case
    weights = torch.rand(len(logits), generator=torch.Generator().manual_seed(1)).double()
    weights[0] = 0 if len(weights) > 1 else 1
    weights /= weights.sum()
    p = E.general(logits, weights, temperature)
    assert torch.allclose(p.sum(dim=1), torch.ones(len(p)), atol=1e-5)
    expected = []
    for c in range(min(5, logits.shape[2])):
        total = 0.0
        for s in range(len(logits)):
            row = [z / temperature for z in logits[s, 0].tolist()]
            total += weights[s].item() * math.exp(-cross_entropy(row, c))
        expected.append(total)
    assert p[0, : len(expected)].tolist() == pytest.approx(expected, rel=1e-3, abs=1e-6)


def quadratic_by_faces(C: np.ndarray) -> float:
    """min w'Cw over the simplex, by solving on every face."""
    best = math.inf
    for size in range(1, len(C) + 1):
        for face in itertools.combinations(range(len(C)), size):
            part = C[np.ix_(face, face)]
            w = np.linalg.lstsq(part, np.ones(size), rcond=None)[0]
            if w.sum() > 0 and (w >= 0).all():
                w = w / w.sum()
                best = min(best, float(w @ part @ w))
    return best


@pytest.mark.parametrize("students", range(1, 9))
def test_general_weights_minimise_on_the_simplex(students: int) -> None:
    rng = np.random.default_rng(students)
    for _ in range(50):
        r = rng.normal(size=(students, 40)) @ np.diag(rng.random(40)) - rng.random((students, 1))
        w = E.general_weights(torch.from_numpy(r))
        C = r @ r.T / 40
        assert (w >= 0).all()
        assert w.sum().item() == pytest.approx(1)
        value = float(w.numpy() @ C @ w.numpy())
        assert value <= quadratic_by_faces(C) * (1 + 1e-5) + 1e-12


def test_general_weights_stay_on_the_simplex_where_the_closed_form_leaves_it() -> None:
    root = torch.linalg.cholesky(torch.tensor([[0.10, 0.12], [0.12, 0.20]], dtype=torch.float64))
    assert E.general_weights(root * math.sqrt(2)).tolist() == pytest.approx([1, 0])


@pytest.mark.parametrize(
    "residuals",
    [torch.zeros(3, 5), torch.full((3, 5), math.nan), torch.zeros(3, 0), torch.full((3, 5), -0.5)],
)
def test_general_weights_of_unusable_residuals_are_uniform(residuals: Tensor) -> None:
    assert E.general_weights(residuals).tolist() == pytest.approx([1 / 3] * 3, abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("method", ["naive", "linear", "min_logit", "mean", "general"])
def test_large_logits_of_any_type_are_safe(dtype: torch.dtype, method: str) -> None:
    logits, labels = random_case(6, 3, 16, 10, 1e4)
    weights = torch.tensor([0.2, 0.0, 0.8], dtype=torch.float64)
    log_p = E.log_soft_target(method, logits.to(dtype), labels, 2.0, weights)
    assert log_p.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert not torch.isnan(log_p).any()
    assert torch.allclose(log_p.exp().sum(dim=1), torch.ones(16, dtype=log_p.dtype), atol=1e-5)


@pytest.mark.parametrize("method", ["naive", "linear", "min_logit", "mean", "general"])
def test_no_gradient_flows_and_order_does_not_matter(method: str) -> None:
    logits, labels = random_case(7, 4, 12, 9, 2.0)
    logits.requires_grad_()
    weights = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    one = E.log_soft_target(method, logits, labels, 2.0, weights)
    assert not one.requires_grad
    order = [2, 0, 3, 1]
    other = E.log_soft_target(method, logits[order], labels, 2.0, weights[order])
    assert torch.allclose(one, other, atol=1e-4)


@pytest.mark.parametrize(
    ("call", "word"),
    [
        (lambda z, y: E.naive(z[0], y), "logits_SBC"),
        (lambda z, y: E.naive(z.long(), y), "logits_SBC"),
        (lambda z, y: E.linear(z, y[:-1]), "labels_B"),
        (lambda z, y: E.min_logit(z, y.int()), "labels_B"),
        (lambda z, y: E.mean(z, y + 100), "labels_B"),
        (lambda z, y: E.general(z, torch.ones(5), 1.0), "weights_S"),
        (lambda z, y: E.general(z, torch.ones(3) / 3, 0.0), "temperature"),
        (lambda z, y: E.log_soft_target("best", z, y, 1.0), "best"),
        (lambda z, y: E.log_soft_target("general", z, y, 1.0), "weights_S"),
        (lambda z, y: E.log_soft_target("naive", z, y, -1.0), "temperature"),
    ],
)
def test_what_does_not_fit_is_refused(call, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        call(*random_case(0, 3, 4, 5, 1.0))


@pytest.mark.parametrize("classes", [2, 10, 100, 1000])
@pytest.mark.parametrize("students", range(1, 9))
def test_every_sample_of_many_against_plain_loops(students: int, classes: int) -> None:
    """2048 samples in all: closed forms by NumPy sample by sample, `linear` by its optimality condition."""
    rng = np.random.default_rng(students * 10_000 + classes)
    scale = rng.choice([0.1, 3.0, 100.0, 1e4], size=(1, 64, 1))
    logits = rng.normal(size=(students, 64, classes)) * scale
    labels, shares = rng.integers(0, classes, 64), rng.dirichlet(np.ones(students))
    z, y, w = torch.from_numpy(logits), torch.from_numpy(labels), torch.from_numpy(shares)
    found = {name: getattr(E, name)(z, y).numpy() for name in ("naive", "linear", "min_logit", "mean")}
    general, weights = E.general_log(z, w, 2.0).numpy(), E.linear_weights(z, y).numpy()
    for b in range(64):
        own, label = logits[:, b], labels[b]
        relative = own - own[:, [label]]
        losses = [special.logsumexp(each) for each in relative]
        # Of students that are as good to the last bit either may be taken.
        best = [i for i in range(students) if losses[i] <= min(losses) + 1e-12 * (1 + abs(own[i]).max())]
        assert any(np.array_equal(found["naive"][b], own[i]) for i in best)
        assert np.allclose(found["min_logit"][b], relative.min(axis=0))
        assert np.allclose(found["mean"][b], own.mean(axis=0))
        mixed = special.logsumexp(special.log_softmax(own / 2, axis=1), axis=0, b=shares[:, None])
        assert np.allclose(general[b], mixed, rtol=1e-6, atol=1e-6)
        a = weights[:, b]
        gradient = relative @ special.softmax(a @ relative)
        assert abs(a.sum() - 1) < 1e-9
        assert a.min() >= 0
        assert a @ gradient - gradient.min() <= 1e-6
        loss = {name: special.logsumexp(each[b] - each[b][label]) for name, each in found.items()}
        slack = 1e-9 * (1 + abs(scale[0, b, 0]))
        assert loss["min_logit"] <= loss["linear"] + slack
        assert loss["linear"] <= loss["naive"] + slack
        assert loss["naive"] <= min(losses) + slack


def test_linear_never_loses_to_naive_in_half_precisions_range() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = (torch.randn(4, 500, 10, generator=generator) * 6e4).clamp(-65504, 65504).half()
    labels = torch.randint(0, 10, (500,), generator=generator)
    losses = []
    for ensemble in (E.linear, E.naive):
        target = ensemble(logits, labels).double()
        losses.append(torch.nn.functional.cross_entropy(target, labels, reduction="none"))
    linear, naive = losses
    assert bool((linear <= naive).all())


def test_absent_students_are_told_apart_in_casts_of_any_size() -> None:
    students, rows = 70, 6
    logits_SBC, labels_B = torch.randn(students, rows, 4), torch.zeros(rows, dtype=torch.int64)
    present_SB = torch.ones(students, rows, dtype=torch.bool)
    for row in range(rows - 1):
        present_SB[students - 1 - row, row] = False
    found_BC = E.log_soft_target("mean", logits_SBC, labels_B, 1.0, None, present_SB)
    for row in range(rows):
        own_SC = logits_SBC[present_SB[:, row], row]
        torch.testing.assert_close(found_BC[row], torch.log_softmax(own_SC.mean(dim=0), dim=0))


@pytest.mark.parametrize("method", ["naive", "linear", "min_logit", "mean", "general"])
@pytest.mark.parametrize("students", [1, 2, 3, 8])
def test_no_ensemble_waits_for_an_accelerator(method: str, students: int) -> None:
    """A tensor on "meta" has no values: code that looks at one, or whose shapes depend on one, fails."""
    logits = torch.empty(students, 16, 10, device="meta")
    labels = torch.empty(16, dtype=torch.int64, device="meta")
    weights = torch.full((students,), 1 / students, dtype=torch.float64)
    assert E.log_soft_target(method, logits, labels, 2.0, weights).shape == (16, 10)
    with pytest.raises(RuntimeError, match="meta"):
        bool(labels.any())


@pytest.mark.parametrize("lowest", [-60.0, -75.0, -90.0, -100.0, -500.0])
@pytest.mark.parametrize("classes", [2, 10, 1000])
def test_general_is_exact_where_only_some_probabilities_underflow(classes: int, lowest: float) -> None:
    logits, labels = random_case(8, 3, 20, classes, 1.0)
    logits[:, 3, 0] = lowest
    found = E.log_soft_target("general", logits, labels, 1.0, torch.tensor([0.5, 0.0, 0.5]))
    expected = special.logsumexp(
        special.log_softmax(logits.double().numpy(), axis=2), axis=0, b=np.array([0.5, 0, 0.5])[:, None, None]
    )
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5, atol=1e-5)
    assert found[3, 0] < 0.8 * lowest

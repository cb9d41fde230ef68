"""Log-sum-exp over the simplex: optimality, and SciPy. Shapes: B problems, S students, C classes."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.special import logsumexp, softmax
from torch.utils._python_dispatch import TorchDispatchMode

from kdcl_dist import ensembles
from kdcl_dist.distillation.simplex import TOLERANCE, minimise_logsumexp

KINDS = ("normal", "nearly_equal", "equal_pair", "lattice", "signs", "one_wild", "confident")


def draw(kind, students, classes, scale, batch, seed):
    """Problems of a kind, relative to a true class, in float32's resolution: (B, S, C)."""
    generator = torch.Generator().manual_seed(seed)
    z_SBC = torch.randn(students, batch, classes, generator=generator, dtype=torch.float64)
    labels_B = torch.randint(classes, (batch,), generator=generator)
    if kind == "nearly_equal":
        z_SBC = z_SBC[:1] + 1e-3 / scale * z_SBC
    if kind == "equal_pair":
        z_SBC[-1] = z_SBC[0]
    if kind == "lattice":
        z_SBC = z_SBC.round()
    if kind == "signs":
        z_SBC = z_SBC.sign()
    if kind == "one_wild":
        z_SBC[1:] /= scale
    if kind == "confident":
        z_SBC[:, torch.arange(batch), labels_B] += 3
    z_SBC = (z_SBC * scale).float().double()
    true_SB1 = z_SBC.gather(2, labels_B.expand(students, -1)[:, :, None])
    return (z_SBC - true_SB1).transpose(0, 1).contiguous()


def solved(z_BSC):
    """The weights (B, S) that the CPU finds; the true class is one with logits of 0."""
    labels_B = (z_BSC == 0).all(dim=1).int().argmax(dim=1)
    return ensembles.linear_weights(z_BSC.transpose(0, 1), labels_B).T


def kkt_gap(z_BSC, weights_BS):
    """In NumPy, apart from the solver: a.g - min_i g_i for each problem."""
    z, a = z_BSC.numpy(), weights_BS.numpy()
    p = softmax(np.einsum("bs,bsc->bc", a, z), axis=1)
    relative = z - np.einsum("bs,bsc->bc", a, z)[:, None]
    return -np.einsum("bsc,bc->bs", relative, p).min(axis=1)


def assert_on_simplex(weights_BS):
    assert bool((weights_BS >= 0).all())
    torch.testing.assert_close(weights_BS.sum(dim=1), torch.ones(len(weights_BS), dtype=torch.float64))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("students", [1, 2, 3, 4, 5, 8])
def test_every_problem_is_solved(kind, students):
    for seed, (classes, scale) in enumerate(itertools.product((2, 3, 10, 100), (0.01, 1, 30, 1e3, 1e4))):
        z_BSC = draw(kind, students, classes, scale, batch=16, seed=seed)
        weights_BS = solved(z_BSC)
        assert_on_simplex(weights_BS)
        assert kkt_gap(z_BSC, weights_BS).max() <= TOLERANCE


@pytest.mark.parametrize("scale", [1, 100, 1e4])
def test_a_thousand_classes(scale):
    z_BSC = draw("normal", 4, 1000, scale, batch=8, seed=0)
    assert kkt_gap(z_BSC, solved(z_BSC)).max() <= TOLERANCE


@settings(derandomize=True, max_examples=150)
@given(st.sampled_from(KINDS), st.integers(1, 8), st.integers(2, 50), st.floats(-3, 4), st.integers(0, 10**6))
def test_any_problem_is_solved(kind, students, classes, exponent, seed):
    z_BSC = draw(kind, students, classes, 10**exponent, batch=3, seed=seed)
    weights_BS = solved(z_BSC)
    assert_on_simplex(weights_BS)
    assert kkt_gap(z_BSC, weights_BS).max() <= TOLERANCE


@pytest.mark.parametrize("students", [2, 3, 4, 6, 8])
def test_no_worse_than_slsqp(students):
    z_BSC = torch.cat(
        [draw("normal", students, 10, scale, batch=10, seed=students) for scale in (0.5, 3, 20)]
    )
    weights_BS = solved(z_BSC).numpy()
    for z, ours in zip(z_BSC.numpy(), weights_BS, strict=True):
        theirs = minimize(
            lambda a, z=z: logsumexp(a @ z),
            np.full(students, 1 / students),
            jac=lambda a, z=z: z @ softmax(a @ z),
            bounds=[(0, 1)] * students,
            constraints={"type": "eq", "fun": lambda a: a.sum() - 1, "jac": np.ones_like},
            method="SLSQP",
            options={"ftol": 1e-14, "maxiter": 500},
        ).x
        theirs = np.clip(theirs, 0, None) / np.clip(theirs, 0, None).sum()
        assert logsumexp(ours @ z) <= logsumexp(theirs @ z) + 1e-9
        assert logsumexp(theirs @ z) <= logsumexp(ours @ z) + 1e-4


def test_two_students_by_bisection():
    z_BSC = draw("normal", 2, 10, 3.0, batch=200, seed=7)
    first, second = z_BSC.numpy().transpose(1, 0, 2)
    low, high = np.zeros((200, 1)), np.ones((200, 1))
    for _ in range(60):
        middle = (low + high) / 2
        p = softmax(middle * first + (1 - middle) * second, axis=1)
        rising = (p * (first - second)).sum(axis=1, keepdims=True) > 0
        low, high = np.where(rising, low, middle), np.where(rising, middle, high)
    np.testing.assert_allclose(solved(z_BSC).numpy()[:, :1], low, atol=1e-5)


def test_clamp_and_renormalise_is_not_a_projection():
    """Projected gradient descent with the false projection settles on worse points than the optimum."""
    z_BSC = draw("normal", 4, 100, 2.0, batch=50, seed=1)
    false_BS = torch.full((50, 4), 0.25, dtype=torch.float64)
    for _ in range(2000):
        p_BC = (false_BS[:, None] @ z_BSC)[:, 0].softmax(dim=1)
        step_BS = false_BS - 0.05 * (z_BSC @ p_BC[:, :, None])[:, :, 0]
        false_BS = step_BS.clamp(min=1e-12) / step_BS.clamp(min=1e-12).sum(dim=1, keepdim=True)
    false_B = (false_BS[:, None] @ z_BSC)[:, 0].logsumexp(dim=1)
    true_B = (solved(z_BSC)[:, None] @ z_BSC)[:, 0].logsumexp(dim=1)
    assert bool((true_B <= false_B + 1e-9).all())
    assert (false_B - true_B).max().item() > 0.1


def test_permuted_students_have_permuted_weights():
    z_BSC = draw("normal", 5, 20, 3.0, batch=40, seed=3)
    order = [3, 0, 4, 1, 2]
    permuted_BS = solved(z_BSC[:, order])
    torch.testing.assert_close(permuted_BS, solved(z_BSC)[:, order], atol=1e-5, rtol=0)


def test_equal_students_share_the_weight():
    z_BSC = draw("normal", 1, 20, 3.0, batch=10, seed=4).expand(-1, 4, -1)
    torch.testing.assert_close(solved(z_BSC), torch.full((10, 4), 0.25, dtype=torch.float64))


@pytest.mark.parametrize("scale", [3.0, 1e3])
def test_a_problem_does_not_depend_on_its_neighbours(scale):
    z_BSC = torch.cat([draw("normal", 4, 30, scale, batch=20, seed=5), draw("lattice", 4, 30, 1.0, 20, 6)])
    together_BS = solved(z_BSC)
    alone_BS = torch.cat([solved(z_1SC) for z_1SC in z_BSC.split(1)])
    both = [(w_BS[:, None] @ z_BSC)[:, 0].logsumexp(dim=1) for w_BS in (together_BS, alone_BS)]
    torch.testing.assert_close(*both, atol=1e-7, rtol=1e-12)
    torch.testing.assert_close(together_BS[:20], alone_BS[:20], atol=1e-5, rtol=0)


def test_deterministic():
    z_BSC = draw("normal", 4, 30, 100.0, batch=20, seed=8)
    assert torch.equal(solved(z_BSC), solved(z_BSC.clone()))


def test_no_problems():
    for solver in (solved, minimise_logsumexp):
        assert solver(torch.zeros(0, 3, 10, dtype=torch.float64)).shape == (0, 3)


class NoWaiting(TorchDispatchMode):
    """Fails where an operation would make the host wait for an accelerator's results."""

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        name = str(operation)
        waits = ("_local_scalar_dense", "nonzero", "item", "is_nonzero", "equal.default", "check_errors")
        assert not any(word in name for word in (*waits, "masked_select", "unique", "aten.index")), name
        return operation(*args, **(kwargs or {}))


def test_what_fails_in_no_waiting():
    with NoWaiting(), pytest.raises(AssertionError, match="_local_scalar_dense"):
        bool(minimise_logsumexp(draw("normal", 2, 10, 1.0, batch=4, seed=0)).any())


@pytest.mark.parametrize("students", [2, 4, 5])
def test_as_on_an_accelerator_nothing_waits(students):
    z_BSC = draw("normal", students, 10, 30.0, batch=8, seed=0)
    with NoWaiting():
        minimise_logsumexp(z_BSC)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("students", [2, 3, 4, 8])
def test_as_on_an_accelerator_every_problem_is_solved(kind, students):
    for seed, scale in enumerate((1, 30, 1e4)):
        z_BSC = draw(kind, students, 10, scale, batch=16, seed=seed)
        weights_BS = minimise_logsumexp(z_BSC)
        assert_on_simplex(weights_BS)
        assert kkt_gap(z_BSC, weights_BS).max() <= TOLERANCE

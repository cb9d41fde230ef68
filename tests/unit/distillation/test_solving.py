"""`linear` on the CPU: optimal for any number of students, and a function of each sample alone.

Shapes: S students, B samples, C classes.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.special import logsumexp, softmax
from test_simplex import KINDS, draw
from torch import Tensor

from kdcl_dist import ensembles as E
from kdcl_dist.distillation import solving
from kdcl_dist.distillation.newton import TOLERANCE

THREADS = (1, 2, 3, 5)


@pytest.fixture
def threads():
    """Sets the threads of this process, with as many blocks even for few logits."""
    before, limit = solving.Threads.count, solving.LOGITS_OF_A_THREAD
    solving.LOGITS_OF_A_THREAD = 1
    yield solving.set_threads
    solving.Threads.count, solving.LOGITS_OF_A_THREAD = before, limit


def mixed_labels(batch: int, classes: int, seed: int) -> Tensor:
    """Class probabilities: half of the samples have two classes, the others many."""
    rng = np.random.default_rng(seed)
    shares = rng.dirichlet(np.full(classes, 0.3), batch)
    shares[::2] = 0.3 * np.eye(classes)[rng.integers(classes, size=len(shares[::2]))]
    shares[::2, 0] += 0.7
    return torch.from_numpy(shares)


def gaps(logits_SBC: Tensor, labels: Tensor, weights_SB: Tensor) -> np.ndarray:
    """By NumPy, from the definition: a.g - min_i g_i, with g the gradient of CE(sum_i a_i z_i, p)."""
    z, a = logits_SBC.double().numpy(), weights_SB.numpy()
    p = labels.numpy() if labels.ndim == 2 else np.eye(z.shape[2])[labels.numpy()]
    residual = softmax(np.einsum("sb,sbc->bc", a, z), axis=1) - p
    # Relative to the combination, which does not change the gap and spares digits.
    gradient = np.einsum("bc,sbc->sb", residual, z - np.einsum("sb,sbc->bc", a, z))
    return -gradient.min(axis=0)


@pytest.mark.parametrize("students", [12, 24, 64])
@pytest.mark.parametrize("kind", KINDS)
def test_every_problem_of_many_students_is_solved(kind: str, students: int) -> None:
    for seed, (classes, scale) in enumerate(itertools.product((2, 10, 100), (0.01, 1, 30, 1e4))):
        logits_SBC = draw(kind, students, classes, scale, batch=8, seed=seed).transpose(0, 1)
        labels_B = (logits_SBC == 0).all(dim=0).int().argmax(dim=1)
        weights_SB = E.linear_weights(logits_SBC, labels_B)
        assert bool((weights_SB >= 0).all())
        torch.testing.assert_close(weights_SB.sum(dim=0), torch.ones(8, dtype=torch.float64))
        assert gaps(logits_SBC, labels_B, weights_SB).max() <= TOLERANCE


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("students", [1, 2, 3, 8, 20])
def test_any_type_of_logits_and_labels(students: int, kind: torch.dtype) -> None:
    for seed, (classes, scale) in enumerate(itertools.product((3, 40), (0.1, 3, 100, 1e4))):
        generator = torch.Generator().manual_seed(seed)
        logits_SBC = (scale * torch.randn(students, 20, classes, generator=generator)).to(kind)
        for labels in (torch.randint(classes, (20,), generator=generator), mixed_labels(20, classes, seed)):
            weights_SB, target_BC = E.linear_weights(logits_SBC, labels), E.linear(logits_SBC, labels)
            slack = TOLERANCE + 1e-11 * scale
            assert gaps(logits_SBC, labels, weights_SB).max() <= slack
            sum_BC = torch.einsum("sb,sbc->bc", weights_SB, logits_SBC.double())
            # A student that is as good to the last bit may be taken instead of the sum.
            is_sum_B = torch.isclose(target_BC.double(), sum_BC, rtol=1e-5, atol=1e-5 * scale).all(dim=1)
            is_one_B = (target_BC == logits_SBC.to(target_BC)).all(dim=2).any(dim=0)
            assert bool((is_sum_B | is_one_B).all())
            losses = [F.cross_entropy(z.double(), labels, reduction="none") for z in (target_BC, sum_BC)]
            assert bool((losses[0] <= losses[1] + 1e-6 * (1 + scale)).all())


@pytest.mark.parametrize("students", [1, 2, 3, 9])
def test_the_result_is_that_of_the_sample_alone(students: int, threads) -> None:
    """Bit for bit: whatever the threads, the other samples, and the sample's place."""
    generator = torch.Generator().manual_seed(students)
    scale_B1 = torch.tensor([0.1, 3.0, 50.0, 1e4])[torch.randint(4, (60, 1), generator=generator)]
    logits_SBC = scale_B1 * torch.randn(students, 60, 37, generator=generator)
    for labels in (torch.randint(37, (60,), generator=generator), mixed_labels(60, 37, 0)):
        threads(1)
        alone = [solving.solve_linear(logits_SBC[:, [b]], labels[[b]]) for b in range(60)]
        target_BC = torch.cat([target for target, _ in alone])
        weights_SB = torch.cat([weights for _, weights in alone], dim=1)
        for count, order in itertools.product(THREADS, (torch.arange(60), torch.randperm(60))):
            threads(count)
            found = solving.solve_linear(logits_SBC[:, order], labels[order])
            assert torch.equal(found[0], target_BC[order])
            assert torch.equal(found[1], weights_SB[:, order])


@pytest.mark.parametrize("students", [1, 2, 3, 9])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_sample_without_numbers_spoils_no_other(students: int, bad: float) -> None:
    logits_SBC, labels_B = torch.randn(students, 8, 10), torch.arange(8)
    clean_BC = E.linear(logits_SBC, labels_B)
    logits_SBC[-1, 3, 5] = logits_SBC[0, 5, 5] = bad
    found_BC = E.linear(logits_SBC, labels_B)
    others = [0, 1, 2, 4, 6, 7]
    assert torch.equal(found_BC[others], clean_BC[others])


def test_logits_of_any_strides() -> None:
    logits_BSC, labels_B = torch.randn(12, 3, 10), torch.arange(24)[::2] % 10
    assert torch.equal(
        E.linear(logits_BSC.transpose(0, 1), labels_B),
        E.linear(logits_BSC.transpose(0, 1).contiguous(), labels_B.contiguous()),
    )


@pytest.mark.parametrize("students", [2, 3, 4, 8, 64])
def test_no_point_of_the_simplex_is_better(students: int) -> None:
    """Slow but plain: vertices, middles of edges, and random points of all faces."""
    rng = np.random.default_rng(students)
    logits_SBC = 4 * rng.normal(size=(students, 30, 20))
    labels_B = rng.integers(20, size=30)
    target_BC = E.linear(torch.from_numpy(logits_SBC), torch.from_numpy(labels_B)).numpy()
    points = [*np.eye(students), *rng.dirichlet(np.full(students, 0.2), 300)]
    points += [(np.eye(students)[i] + np.eye(students)[0]) / 2 for i in range(students)]
    for b in range(30):
        relative_SC = logits_SBC[:, b] - logits_SBC[:, b, [labels_B[b]]]
        ours = logsumexp(target_BC[b] - target_BC[b, labels_B[b]])
        assert ours <= logsumexp(np.stack(points) @ relative_SC, axis=1).min() + 1e-9

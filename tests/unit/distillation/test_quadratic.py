"""Quadratic programmes over the simplex against all faces. Shapes: B problems, S students."""

import itertools

import numpy as np
import pytest
import torch

from kdcl_dist.distillation.active_set import minimise_programme, programme_of
from kdcl_dist.distillation.quadratic import MOST_BY_FACES, minimise_quadratic, quadratic_minimum


def draw(size, seed=0, batch=60):
    """Hessians with diagonals of at most 1, gradients, and starts of which a third are vertices."""
    rng = np.random.default_rng(seed)
    root = rng.normal(size=(batch, size, size + 2))
    hessian = root @ root.transpose(0, 2, 1) + 1e-3 * np.eye(size)
    hessian /= hessian.diagonal(axis1=1, axis2=2).max(axis=1)[:, None, None]
    gradient, start = rng.normal(size=(batch, size)), rng.dirichlet(np.ones(size), batch)
    start[: batch // 3] = np.eye(size)[rng.integers(size, size=batch // 3)]
    return hessian, gradient, start


def tensors(arrays):
    return [torch.from_numpy(array) for array in arrays]


def value(problem, x_BS):
    hessian, gradient, start = problem
    step = x_BS - start
    return (gradient * step).sum(axis=1) + np.einsum("bi,bij,bj->b", step, hessian, step) / 2


def best_of_all_faces(hessian, gradient):
    """The simplex QP min g.x + x'Hx/2 by solving the equality-constrained problem on each of its faces."""
    size, best, best_value = len(gradient), None, np.inf
    for count in range(1, size + 1):
        for face in itertools.combinations(range(size), count):
            system = np.zeros((count + 1, count + 1))
            system[:count, :count] = hessian[np.ix_(face, face)]
            system[count, :count] = system[:count, count] = 1
            solution = np.linalg.solve(system, np.append(-gradient[list(face)], 1))[:count]
            x = np.zeros(size)
            x[list(face)] = solution
            value = gradient @ x + x @ hessian @ x / 2
            if solution.min() >= 0 and value < best_value:
                best, best_value = x, value
    return best


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 6])
def test_minimum_against_all_faces(size):
    problem = draw(size, size)
    found = minimise_quadratic(*tensors(problem)).numpy()
    for h, g, s, x in zip(*problem, found, strict=True):
        np.testing.assert_allclose(x, best_of_all_faces(h, g - h @ s), atol=1e-8)


def compiled_minimum(hessian, gradient, start):
    """One programme at a time, as the solver on the CPU asks for it."""
    found, programme = np.empty_like(start), programme_of(start.shape[1])
    for b in range(len(start)):
        programme.hessian_KK[:], programme.gradient_K[:], programme.x_K[:] = hessian[b], gradient[b], start[b]
        minimise_programme(programme, start.shape[1])
        found[b] = programme.x_K
    return found


@pytest.mark.parametrize("size", [2, MOST_BY_FACES, MOST_BY_FACES + 1, 9])
def test_numba_and_torch_find_the_same_minimum(size):
    problem = draw(size, batch=20)
    by_numba = compiled_minimum(*problem)
    hessian, gradient, start = tensors(problem)
    by_torch = quadratic_minimum(hessian.permute(1, 2, 0), gradient.T, start.T).T.numpy()
    direct = minimise_quadratic(hessian, gradient, start).numpy()
    np.testing.assert_allclose(by_numba, direct, atol=1e-8)
    for x_BS in (by_numba, by_torch):
        assert (value(problem, x_BS) <= 1e-12).all()


@pytest.mark.parametrize("size", [2, 4, 5, 12])
def test_a_fixed_number_of_passes_improves_on_the_start(size):
    problem = draw(size, 3)
    x_BS = minimise_quadratic(*tensors(problem), early_exit=False).numpy()
    assert (x_BS >= 0).all()
    np.testing.assert_allclose(x_BS.sum(axis=1), 1, atol=1e-12)
    assert (value(problem, x_BS) <= 1e-12).all()


@pytest.mark.parametrize("size", [3, 7])
def test_the_minimum_inside_is_exact(size):
    centre = np.full(size, 1 / size)
    start = np.eye(size)[:1]
    hessian = np.eye(size)[None]
    x_BS = minimise_quadratic(*tensors((hessian, start - centre, start))).numpy()
    np.testing.assert_allclose(x_BS[0], centre, atol=1e-14)

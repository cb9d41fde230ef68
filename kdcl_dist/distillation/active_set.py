"""One quadratic programme over the probability simplex {x >= 0, sum x = 1}, compiled.

A primal active-set method (Nocedal and Wright, 2006, algorithm 16.3). "Clamp to >= 0 and renormalise" is no
projection onto the simplex and ends at wrong points.

Shapes: K coordinates.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from kdcl_dist.distillation.kernels import Vector, compiled, normalise

__all__ = ["Programme", "minimise_programme", "programme_of"]

#: Smallest squared pivot of a Cholesky factor, for Hessians whose diagonals are of the order of 1.
LEAST_PIVOT = 1e-13


class Programme(NamedTuple):
    """A programme of up to some number of coordinates, and the memory of its solution.

    Attributes:
        hessian_KK: H, symmetric and positive definite, with diagonals of at most about 1.
        gradient_K: g, the gradient at the start.
        x_K: the start, a point of the simplex; then the minimum.
        slope_K: the gradient at `x_K`.
        step_K, factor_KK, fixed_K, inner_K: memory that is written over.
    """

    hessian_KK: Vector
    gradient_K: Vector
    x_K: Vector
    slope_K: Vector
    step_K: Vector
    factor_KK: Vector
    fixed_K: Vector
    inner_K: Vector


@compiled
def programme_of(size: int) -> Programme:
    """A programme without content."""
    return Programme(
        np.empty((size, size)),
        np.empty(size),
        np.empty(size),
        np.empty(size),
        np.empty(size),
        np.empty((size, size)),
        np.empty(size, np.bool_),
        np.empty(size, np.int64),
    )


@compiled
def minimise_programme(programme: Programme, size: int) -> None:
    """Move x to the minimum of g.(x - start) + (x - start)'H(x - start) / 2, over the first coordinates.

    Either a bound stops a step and its coordinate becomes fixed, or the step reaches the minimum of its face
    and the fixed coordinate that would lower the value most becomes free.
    """
    x_K, slope_K, fixed_K = programme.x_K, programme.slope_K, programme.fixed_K
    steepest = 0.0
    for i in range(size):
        slope_K[i], fixed_K[i] = programme.gradient_K[i], x_K[i] <= 0
        steepest = max(steepest, abs(slope_K[i]))
    for _ in range(4 * size + 4):
        level = _face_step(programme, size)
        blocking = _move(programme, size)
        if blocking >= 0:
            x_K[blocking], fixed_K[blocking] = 0.0, True
            continue
        freed, worst = -1, -1e-12 * (1 + steepest)
        for i in range(size):
            if fixed_K[i] and slope_K[i] - level < worst:
                freed, worst = i, slope_K[i] - level
        if freed < 0:
            break
        fixed_K[freed] = False
    normalise(x_K, size)


@compiled
def _move(programme: Programme, size: int) -> int:
    """Take the step as far as the bounds allow; the coordinate that stops it, or -1."""
    hessian_KK, x_K, step_K = programme.hessian_KK, programme.x_K, programme.step_K
    length, blocking = 1.0, -1
    for i in range(size):
        if step_K[i] < 0 and x_K[i] < length * -step_K[i]:
            length, blocking = x_K[i] / -step_K[i], i
    for i in range(size):
        bend = 0.0
        for j in range(size):
            bend += hessian_KK[i, j] * step_K[j]
        x_K[i] = max(x_K[i] + length * step_K[i], 0.0)
        programme.slope_K[i] += length * bend
    return blocking


@compiled
def _face_step(programme: Programme, size: int) -> float:
    """Write the step to the minimum on the face of free coordinates; return their common slope there.

    The largest free coordinate takes up what the others leave of the sum 1.
    """
    step_K, inner_K, fixed_K = programme.step_K, programme.inner_K, programme.fixed_K
    last = -1
    for i in range(size):
        step_K[i] = 0.0
        if not fixed_K[i] and (last < 0 or programme.x_K[i] > programme.x_K[last]):
            last = i
    inner = 0
    for i in range(size):
        if not fixed_K[i] and i != last:
            inner_K[inner] = i
            inner += 1
    _solve_forward(programme, inner, last)
    _solve_backward(programme, inner)
    for p in range(inner):
        step_K[last] -= step_K[inner_K[p]]
    level: float = programme.slope_K[last]
    for j in range(size):
        level += programme.hessian_KK[last, j] * step_K[j]
    return level


@compiled
def _solve_forward(programme: Programme, inner: int, last: int) -> None:
    """Factorise the Hessian of the inner coordinates (Cholesky), and solve with the lower factor."""
    h, low = programme.hessian_KK, programme.factor_KK
    slope_K, step_K, inner_K = programme.slope_K, programme.step_K, programme.inner_K
    for p in range(inner):
        i = inner_K[p]
        for q in range(p + 1):
            j = inner_K[q]
            value = h[i, j] - h[i, last] - h[last, j] + h[last, last]
            for t in range(q):
                value -= low[p, t] * low[q, t]
            low[p, q] = math.sqrt(max(value, LEAST_PIVOT)) if p == q else value / low[q, q]
        value = slope_K[last] - slope_K[i]
        for t in range(p):
            value -= low[p, t] * step_K[inner_K[t]]
        step_K[i] = value / low[p, p]


@compiled
def _solve_backward(programme: Programme, inner: int) -> None:
    """Solve with the transpose of the lower factor, in place."""
    low, step_K, inner_K = programme.factor_KK, programme.step_K, programme.inner_K
    for p in range(inner - 1, -1, -1):
        value = step_K[inner_K[p]]
        for t in range(p + 1, inner):
            value -= low[t, p] * step_K[inner_K[t]]
        step_K[inner_K[p]] = value / low[p, p]

"""Log-sum-exp over the probability simplex {a >= 0, sum a = 1}, one small convex problem at a time, compiled.

For each sample, the weights of the `linear` ensemble minimise f(a) = log sum_c exp(sum_i a_i Z_ic). The
dimension is the number of students, so Newton's method with the exact Hessian is cheap. Each Newton model is
solved on the simplex as a quadratic programme, which meets the bounds exactly. Of many students few have
weight, so the model leaves out those that have none and would get none.

Logits far apart make f almost piecewise linear; Newton's model is then useless far from the solution. Such a
problem is first solved at a high temperature tau, as tau * f(. / tau), and tau then falls to 1.

Z is stored as one student's part and the differences of the others from it, which are exact where students
nearly agree. A step shorter than Newton's remainder needs no second evaluation.

Shapes: S students, C classes.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from kdcl_dist.distillation.active_set import Programme, minimise_programme, programme_of
from kdcl_dist.distillation.kernels import (
    Vector,
    add,
    compiled,
    copy,
    dot,
    exponentials,
    largest,
    normalise,
    product,
    smallest,
)

__all__ = ["TOLERANCE", "Problem", "aim_of", "minimise", "noise_of", "problem_of"]

#: Largest KKT gap of a solution: a.g - min_i g_i bounds f(a) - min f from above.
TOLERANCE = 1e-6
#: The gap to aim at, far below the tolerance, so that a vertex is rarely better than the solution.
AIM = 1e-9
#: Limit of steps. Logits up to 1e4 take about 120; beyond 1e5, double precision ends before the gap closes.
MAX_STEPS = 300
#: Largest difference between students' logits for a solution at tau = 1 at once.
EASY_SPREAD = 70.0
#: Divisor of tau after a rough solution at the present tau.
COOLING = 4.0
#: Ridge that keeps Newton's model definite where students' logits agree, in units of its scale.
RIDGE = 1e-10
#: Rounding error of f in units of the largest logit: a rise below it says nothing about a step.
NOISE = 1e-14
#: Students without weight that enter Newton's model in one step.
MOST_NEW = 8


class Problem(NamedTuple):
    """One problem and its memory: it serves one sample after another.

    Attributes:
        base_C: Z of one student.
        apart_SC: the differences of all from it.
        weights_S: a.
        peaks_S: the largest Z of each student.
        mixed_C, power_C: for the passes over the classes.
        slope_S: the gradient of f less that of the student of `base_C`.
        start_S: the point from which the last step went.
        model_S: the students of Newton's model, and `inside_S` whether a student is one of them.
        programme: Newton's model.
    """

    base_C: Vector
    apart_SC: Vector
    weights_S: Vector
    peaks_S: Vector
    mixed_C: Vector
    power_C: Vector
    slope_S: Vector
    start_S: Vector
    model_S: Vector
    inside_S: Vector
    programme: Programme


@compiled
def problem_of(students: int, classes: int) -> Problem:
    """A problem without content."""
    return Problem(
        np.empty(classes),
        np.empty((students, classes)),
        np.empty(students),
        np.empty(students),
        np.empty(classes),
        np.empty(classes),
        np.empty(students),
        np.empty(students),
        np.empty(students, np.int64),
        np.empty(students, np.bool_),
        programme_of(students),
    )


@compiled
def _set_start(problem: Problem) -> None:
    """Weights to start from: more for students with lower logits, and none beyond the first few."""
    weights_S, peaks_S, students = problem.weights_S, problem.peaks_S, len(problem.peaks_S)
    least, positive = smallest(peaks_S), 0
    for i in range(students):
        weights_S[i] = math.exp(-0.25 * (peaks_S[i] - least))
        positive += weights_S[i] > 0
    for _ in range(positive - MOST_NEW):
        low = -1
        for i in range(students):
            if weights_S[i] > 0 and (low < 0 or weights_S[i] <= weights_S[low]):
                low = i
        weights_S[low] = 0.0
    normalise(weights_S, students)


@compiled
def minimise(problem: Problem) -> None:
    """Move the weights to the minimum, with a KKT gap of at most `TOLERANCE` wherever float64 reaches it."""
    _set_start(problem)
    weights_S, start_S, slope_S = problem.weights_S, problem.start_S, problem.slope_S
    spread, noise = spread_of(problem), noise_of(problem)
    aim = aim_of(noise)
    tau = max(1.0, spread / (4 * EASY_SPREAD))
    # f at the start of the step, and its change by the step in Newton's model.
    before, fall = np.inf, 0.0
    for _ in range(MAX_STEPS):
        value = _evaluate(problem, tau)
        mean = dot(weights_S, slope_S)
        closed = mean - smallest(slope_S) <= (aim if tau <= 1 else 0.1 * tau)
        if closed and tau <= 1:
            break
        if not closed and value > before + 1e-4 * fall + noise:
            fall /= 2
            for i in range(len(weights_S)):
                weights_S[i] = (start_S[i] + weights_S[i]) / 2
            continue
        copy(start_S, weights_S)
        if closed:
            before, tau = np.inf, max(1.0, tau / COOLING)
            continue
        size = _choose_students(problem, mean)
        scale = _set_model(problem, size, mean, tau)
        minimise_programme(problem.programme, size)
        before = value
        fall, rest = _take_step(problem, size, scale, spread)
        if tau <= 1 and size == len(weights_S) and rest <= aim:
            break


@compiled
def spread_of(problem: Problem) -> float:
    """An upper bound of the range over the classes of any two students' difference."""
    spread = 0.0
    for i in range(len(problem.weights_S)):
        spread = max(spread, largest(problem.apart_SC[i]) - smallest(problem.apart_SC[i]))
    return 2 * spread


@compiled
def noise_of(problem: Problem) -> float:
    """The rounding error of f."""
    reach = 0.0
    for i in range(len(problem.weights_S)):
        reach = max(reach, max(largest(problem.apart_SC[i]), -smallest(problem.apart_SC[i])))
    return NOISE * (max(largest(problem.base_C), -smallest(problem.base_C)) + reach)


@compiled
def aim_of(noise: float) -> float:
    """The gap to aim at."""
    return min(max(100 * noise, AIM), TOLERANCE)


@compiled
def _evaluate(problem: Problem, tau: float) -> float:
    """f = tau * log sum_c exp(a'Z / tau), and its gradient less that of the student of `base_C`.

    `power_C` becomes the softmax of a'Z / tau.
    """
    mixed_C, power_C, apart_SC = problem.mixed_C, problem.power_C, problem.apart_SC
    copy(mixed_C, problem.base_C)
    for i in range(len(problem.weights_S)):
        if problem.weights_S[i] > 0:
            add(mixed_C, problem.weights_S[i], apart_SC[i])
    peak = largest(mixed_C)
    total = exponentials(mixed_C, peak, tau, power_C)
    for c in range(len(power_C)):
        power_C[c] /= total
    for i in range(len(problem.weights_S)):
        problem.slope_S[i] = dot(power_C, apart_SC[i])
    return peak + tau * math.log(total)


@compiled
def _choose_students(problem: Problem, mean: float) -> int:
    """The students of Newton's model: all of few; of many those with weight, and the steepest without."""
    inside_S, slope_S, students = problem.inside_S, problem.slope_S, len(problem.weights_S)
    for i in range(students):
        inside_S[i] = students <= MOST_NEW or problem.weights_S[i] > 0
    for _ in range(MOST_NEW):
        steepest = -1
        for i in range(students):
            if not inside_S[i] and slope_S[i] < mean and (steepest < 0 or slope_S[i] < slope_S[steepest]):
                steepest = i
        if steepest < 0:
            break
        inside_S[steepest] = True
    size = 0
    for i in range(students):
        if inside_S[i]:
            problem.model_S[size] = i
            size += 1
    return size


@compiled
def _set_model(problem: Problem, size: int, mean: float, tau: float) -> float:
    """Write Newton's model as a programme; return its divisor, which makes flat and steep ones alike."""
    programme, weighted_C, slope_S = problem.programme, problem.mixed_C, problem.slope_S
    hessian_KK, gradient_K = programme.hessian_KK, programme.gradient_K
    scale = 1e-100
    for u in range(size):
        i = problem.model_S[u]
        product(weighted_C, problem.power_C, problem.apart_SC[i])
        for v in range(u + 1):
            j = problem.model_S[v]
            moment = dot(weighted_C, problem.apart_SC[j])
            hessian_KK[u, v] = hessian_KK[v, u] = (moment - slope_S[i] * slope_S[j]) / tau
        gradient_K[u] = slope_S[i] - mean
        programme.x_K[u] = problem.weights_S[i]
        scale = max(scale, max(hessian_KK[u, u], abs(gradient_K[u])))
    for u in range(size):
        gradient_K[u] /= scale
        for v in range(size):
            hessian_KK[u, v] /= scale
        hessian_KK[u, u] += RIDGE
    return scale


@compiled
def _take_step(problem: Problem, size: int, scale: float, spread: float) -> tuple[float, float]:
    """Take the weights of the model; f's change by the slope, and a bound of the KKT gap after the step.

    Taylor's remainder of the gradient: the third derivative along the step is at most the range of the logits
    times the variance along the step. The variance grows at most by e^range of the step. At the minimum of
    the model the variance is at most the change by the slope; near it, hardly more.
    """
    programme = problem.programme
    fall, moved, after, least = 0.0, 0.0, 0.0, np.inf
    for u in range(size):
        i = problem.model_S[u]
        change = programme.x_K[u] - problem.weights_S[i]
        problem.weights_S[i] = programme.x_K[u]
        fall += scale * programme.gradient_K[u] * change
        moved += abs(change)
        after += scale * programme.x_K[u] * programme.slope_K[u]
        least = min(least, scale * programme.slope_K[u])
    gap = after - least
    rest = 0.5 * spread * (abs(fall) + gap) * math.exp(min(moved * spread / 2, 50.0))
    return fall, gap + rest

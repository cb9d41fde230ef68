"""The `linear` ensemble of KDCL (Guo et al., CVPR 2020, eq. 5), sample by sample; `machine_code` compiles it.

A sample's result depends on the sample alone, and not on its position in the batch.

Shapes: S students, B batch, C classes.
"""

from __future__ import annotations

import math

import numpy as np

from kdcl_dist.distillation.kernels import Vector, add, compiled, copy, dot, exponentials, largest
from kdcl_dist.distillation.newton import Problem, minimise, problem_of
from kdcl_dist.distillation.newton_of_two import minimise_of_two

__all__ = ["solve"]


def solve(
    logits_SBC: Vector,
    labels_B: Vector,
    shares_BC: Vector,
    out_BC: Vector,
    weights_SB: Vector,
    first: int,
    end: int,
) -> None:
    """Write the combination of the students' logits with the smallest cross-entropy, and its weights.

    Where rounding makes a student's own cross-entropy the smaller one, its logits are taken.

    Args:
        logits_SBC: float32 or float64.
        labels_B: the true classes.
        shares_BC: class probabilities, float64, instead of classes; without columns there are none.
        out_BC: the combination, in the type of the logits.
        weights_SB: the weights, float64.
        first, end: the samples to solve.
    """
    students, _, classes = logits_SBC.shape
    problem = problem_of(students, classes)
    problem.weights_S[0] = 1.0  # of one student
    for b in range(first, end):
        best, lowest = _set_problem(problem, logits_SBC, labels_B[b], shares_BC[b], b)
        if students == 2:
            minimise_of_two(problem, best)
        elif students > 2:
            minimise(problem)
        for i in range(students):
            weights_SB[i, b] = problem.weights_S[i]
        _combine(problem, logits_SBC, out_BC[b], b)
        if _set_relative(problem.mixed_C, out_BC[b], labels_B[b], shares_BC[b], problem.power_C)[1] > lowest:
            copy(out_BC[b], logits_SBC[best, b])


@compiled
def _set_problem(
    problem: Problem, logits_SBC: Vector, label: int, shares_C: Vector, b: int
) -> tuple[int, float]:
    """Write the Z of a sample; the student with the smallest cross-entropy, and that."""
    apart_SC, base_C, best, lowest = problem.apart_SC, problem.base_C, 0, np.inf
    for i in range(len(apart_SC)):
        peak, loss = _set_relative(apart_SC[i], logits_SBC[i, b], label, shares_C, problem.power_C)
        problem.peaks_S[i] = peak
        if loss < lowest:
            best, lowest = i, loss
    copy(base_C, apart_SC[best])
    for i in range(len(apart_SC)):
        add(apart_SC[i], -1.0, base_C)
    return best, lowest


@compiled
def _set_relative(
    out_C: Vector, logits_C: Vector, label: int, shares_C: Vector, power_C: Vector
) -> tuple[float, float]:
    """Write logits less that of the true class, or less <p, z>: the largest, and the cross-entropy."""
    of_label = dot(shares_C, logits_C) if len(shares_C) else np.float64(logits_C[label])
    for c in range(len(out_C)):
        out_C[c] = logits_C[c] - of_label
    peak = largest(out_C)
    return peak, peak + math.log(exponentials(out_C, peak, 1.0, power_C))


@compiled
def _combine(problem: Problem, logits_SBC: Vector, out_C: Vector, b: int) -> None:
    """Write the combination of a sample's logits, summed in float64."""
    mixed_C, weights_S = problem.mixed_C, problem.weights_S
    for c in range(len(mixed_C)):
        mixed_C[c] = 0.0
    for i in range(len(weights_S)):
        if weights_S[i] > 0:
            add(mixed_C, weights_S[i], logits_SBC[i, b])
    copy(out_C, mixed_C)

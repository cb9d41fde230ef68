"""Log-sum-exp over the probability simplex {a >= 0, sum a = 1}: many small convex problems at a time.

For tensors of an accelerator; on the CPU `linear` solves sample by sample. A look at a result would stall the
accelerator's queue, so all problems take the same fixed number of steps.

For each sample, the weights of the `linear` ensemble minimise f(a) = log sum_c exp(sum_i a_i Z_ic). The
dimension is the number of students, so Newton's method with the exact Hessian is cheap. Each Newton model is
solved on the simplex as a quadratic programme, which meets the bounds exactly.

Logits far apart make f almost piecewise linear; Newton's model is then useless far from the solution. Such a
problem is first solved at a high temperature tau, as tau * f(. / tau), and tau then falls to 1.

Passes over Z take most of the time, so a step makes as few as possible:

- Z is in bits, since powers of 2 are twice as fast as powers of e. It is stored as the last student's part
  and the differences of the others from it.
- One pass yields the gradient and the Hessian.

Shapes: B problems, S dimension (students), R = S - 1, C classes.
"""

from __future__ import annotations

import math
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from kdcl_dist.distillation.quadratic import quadratic_minimum

__all__ = ["TOLERANCE", "minimise_logsumexp"]

#: Largest KKT gap of a solution: a.g - min_i g_i bounds f(a) - min f from above.
TOLERANCE = 1e-6
#: The gap to aim at, far below the tolerance, so that a vertex is rarely better than the solution.
AIM = 1e-9
#: Number of steps. Logits up to 1e4 take about 50; beyond 1e5, double precision ends before the gap closes.
STEPS = 128
#: The same for two students: half of them halve the bracket, where Newton's steps do not help.
STEPS_OF_TWO = 100
#: Largest difference between students' logits, in bits, for a solution at tau = 1 at once.
EASY_SPREAD = 100.0
#: Divisor of tau after a rough solution at the present tau.
COOLING = 4.0
#: Ridge that keeps Newton's model definite where students' logits agree, in units of its scale.
RIDGE = 1e-10
#: Rounding error of f in units of the largest logit: a rise below it says nothing about a step.
NOISE = 1e-14
LN2 = math.log(2)


class _Problems(NamedTuple):
    """Z in bits: the last student's, and the others' differences from it.

    The differences are exact where the students nearly agree.
    """

    last_BC: Tensor
    apart_BRC: Tensor
    #: Memory that every evaluation writes over: new memory costs more than the arithmetic.
    scratch_BRC: Tensor
    spread_B: Tensor
    noise_B: Tensor
    aim_B: Tensor


class _Search(NamedTuple):
    """The state of each problem: a step from `start` to `trial`, which counts if f falls enough."""

    trial_SB: Tensor
    start_SB: Tensor
    #: f at `start`, infinite if unknown, and its change on the way to `trial` by Newton's model.
    value_B: Tensor
    fall_B: Tensor
    tau_B: Tensor
    solved_B: Tensor


def minimise_logsumexp(logits_BSC: Tensor) -> Tensor:
    """The weights a on the simplex that minimise logsumexp_c(sum_i a_i Z_ic), for each problem.

    Args:
        logits_BSC: Z, float64, finite.

    Returns:
        weights_BS, float64, with a KKT gap of at most `TOLERANCE` wherever double precision reaches it.
    """
    batch, students, _ = logits_BSC.shape
    if students == 1 or not batch:
        return logits_BSC.new_ones((batch, students))
    problems = _prepared(logits_BSC)
    if students == 2:
        return _minimised_of_two(problems)
    # More weight for students with lower logits: this start saves a step over equal weights.
    start_SB = (-0.25 * logits_BSC.amax(dim=2)).softmax(dim=1).T
    zero_B = 0 * problems.noise_B
    tau_B = (problems.spread_B / (4 * EASY_SPREAD)).clamp(min=1.0)
    search = _Search(start_SB, start_SB, zero_B + math.inf, zero_B, tau_B, zero_B > 0)
    for _ in range(STEPS):
        search = _advanced(problems, search)
    return search.trial_SB.T


def _prepared(logits_BSC: Tensor) -> _Problems:
    last_BC = logits_BSC[:, -1] / LN2
    apart_BRC = (logits_BSC[:, :-1] - logits_BSC[:, -1:]).div_(LN2)
    high_BR, low_BR = apart_BRC.amax(dim=2), apart_BRC.amin(dim=2)
    # An upper bound of the range over the classes of any two students' difference.
    spread_B = 2 * (high_BR - low_BR).amax(dim=1)
    largest_B = last_BC.abs().amax(dim=1) + torch.maximum(high_BR, -low_BR).amax(dim=1)
    noise_B = NOISE * largest_B
    aim_B = (100 * noise_B).clamp(min=AIM / LN2, max=TOLERANCE / LN2)
    return _Problems(last_BC, apart_BRC, torch.empty_like(apart_BRC), spread_B, noise_B, aim_B)


def _minimised_of_two(problems: _Problems) -> Tensor:
    """The weights (B, 2): the root of f's slope on [0, 1], by Newton's method kept within its bracket."""
    last_BC, apart_BC = problems.last_BC, problems.apart_BRC[:, 0]
    low_B1 = torch.zeros_like(last_BC[:, :1])
    high_B1, first_B1 = low_B1 + 1, low_B1 + 0.5
    steepness_B1 = low_B1 + torch.inf
    for _ in range(STEPS_OF_TWO):
        power_BC = torch.addcmul(last_BC, first_B1, apart_BC)
        power_BC = power_BC.sub_(power_BC.amax(dim=1, keepdim=True)).exp2_()
        power_BC.div_(power_BC.sum(dim=1, keepdim=True))
        weighted_BC = power_BC.mul_(apart_BC)
        slope_B1 = weighted_BC.sum(dim=1, keepdim=True)
        moment_B1 = torch.linalg.vecdot(weighted_BC, apart_BC)[:, None]
        rising_B1 = slope_B1 > 0
        gap_B1 = slope_B1 * (first_B1 - (~rising_B1).to(first_B1.dtype))
        open_B1 = gap_B1 > problems.aim_B[:, None]
        low_B1, high_B1 = torch.where(rising_B1, low_B1, first_B1), torch.where(rising_B1, first_B1, high_B1)
        curvature_B1 = torch.addcmul(moment_B1, slope_B1, slope_B1, value=-1).mul_(LN2).clamp_(min=1e-100)
        newton_B1 = (first_B1 - slope_B1 / curvature_B1).clamp_(min=low_B1, max=high_B1)
        # Where Newton did not halve the slope, f has a kink: halve the bracket.
        poor_B1 = slope_B1.abs() > 0.5 * steepness_B1
        steepness_B1 = torch.where(poor_B1, torch.inf, slope_B1.abs())
        next_B1 = torch.where(poor_B1, (low_B1 + high_B1) / 2, newton_B1)
        first_B1 = torch.where(open_B1, next_B1, first_B1)
    return torch.cat([first_B1, 1 - first_B1], dim=1)


def _advanced(problems: _Problems, search: _Search) -> _Search:
    """One step of each open problem: accept the trial and find the next, or halve the way to it."""
    trial_SB, tau_B = search.trial_SB, search.tau_B
    value_B, slope_SB, hessian_SSB = _evaluate(problems, trial_SB, tau_B)
    # Relative to its mean, the smallest component is the negated KKT gap.
    slope_SB = slope_SB - (trial_SB * slope_SB).sum(0)
    gap_B = -torch.amin(slope_SB, 0)
    cold_B = tau_B <= 1
    closed_B = gap_B <= torch.where(cold_B, problems.aim_B, 0.1 * tau_B)
    taken_B = (value_B <= search.value_B + 1e-4 * search.fall_B + problems.noise_B) | closed_B
    next_SB, fall_B, exact_B = _newton_step(problems, trial_SB, slope_SB, hessian_SSB)
    cooled_B = closed_B & ~cold_B
    stays_B = search.solved_B | closed_B
    half_SB = (search.start_SB + trial_SB) / 2
    return _Search(
        torch.where(stays_B, trial_SB, torch.where(taken_B, next_SB, half_SB)),
        torch.where(taken_B, trial_SB, search.start_SB),
        torch.where(cooled_B, math.inf, torch.where(taken_B, value_B, search.value_B)),
        torch.where(taken_B, fall_B, search.fall_B / 2),
        torch.where(cooled_B, (tau_B / COOLING).clamp(min=1.0), tau_B),
        search.solved_B | (cold_B & (closed_B | (taken_B & exact_B))),
    )


def _evaluate(problems: _Problems, weights_SB: Tensor, tau_B: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """f = tau * log2 sum_c 2^(a'Z / tau), its gradient less the last student's, and its Hessian."""
    weights_B1R = weights_SB[:-1].T[:, None]
    peak_B11, total_B1, sum_BR, moment_BRR = _passes(problems, weights_B1R, tau_B[:, None, None])
    peak_B, total_B, sum_RB = peak_B11[:, 0, 0], total_B1[:, 0], sum_BR.T
    moment_RRB = torch.moveaxis(moment_BRR, 0, -1)
    value_B = tau_B * (peak_B + torch.log2(total_B))
    slope_SB, hessian_SSB = torch.zeros_like(weights_SB), torch.zeros_like(weights_SB[:, None] + weights_SB)
    slope_RB = slope_SB[:-1] = sum_RB / total_B
    hessian_SSB[:-1, :-1] = (moment_RRB / total_B - slope_RB[:, None] * slope_RB) * (LN2 / tau_B)
    return value_B, slope_SB, hessian_SSB


def _passes(problems: _Problems, weights_B1R: Tensor, tau_B11: Tensor) -> tuple[Tensor, ...]:
    """What `_evaluate` needs of Z: the largest bits, the sum of powers, its first and second moments."""
    last_BC, apart_BRC, scratch_BRC = problems[:3]
    # With other strides, PyTorch would multiply problem by problem.
    mixed_B1C = torch.baddbmm(last_BC[:, None], weights_B1R.contiguous(), apart_BRC).div_(tau_B11)
    peak_B11 = mixed_B1C.amax(dim=2, keepdim=True)
    power_B1C = mixed_B1C.sub_(peak_B11).exp2_()
    weighted_BRC = torch.mul(apart_BRC, power_B1C, out=scratch_BRC)
    moment_BRR = torch.bmm(weighted_BRC, apart_BRC.mT)
    return peak_B11, power_B1C.sum(dim=2), weighted_BRC.sum(dim=2), moment_BRR


def _newton_step(
    problems: _Problems, weights_SB: Tensor, slope_SB: Tensor, hessian_SSB: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The minimiser of Newton's model, f's change by the slope, and whether it surely solves tau = 1."""
    # The division by the scale, curvature or slope, makes flat and steep problems alike.
    scale_B = torch.maximum(hessian_SSB.amax(dim=(0, 1)), slope_SB.abs().amax(dim=0)).clamp(min=1e-100)
    model_SSB = hessian_SSB / scale_B + _ridge(len(slope_SB), slope_SB.device)
    next_SB = quadratic_minimum(model_SSB, slope_SB / scale_B, weights_SB)
    step_SB = next_SB - weights_SB
    after_SB = slope_SB + (hessian_SSB * step_SB).sum(1)
    gap_B = (next_SB * after_SB).sum(0) - torch.amin(after_SB, 0)
    # Taylor's remainder of the gradient: the third derivative along the step is at most the range of the
    # logits times the variance along the step. The variance grows at most by 2^range of the step. At the
    # minimum of the model the variance is at most the change by the slope; near it, hardly more.
    range_B = abs(step_SB).sum(0) * problems.spread_B / 2
    fall_B = (slope_SB * step_SB).sum(0)
    rest_B = 0.5 * LN2 * problems.spread_B * (abs(fall_B) + gap_B) * range_B.clamp(max=50).exp2()
    return next_SB, fall_B, gap_B + rest_B <= problems.aim_B


@cache
def _ridge(size: int, device: torch.device) -> Tensor:
    """The ridge that keeps a model definite, (S, S, 1)."""
    return RIDGE * torch.eye(size, dtype=torch.float64, device=device)[:, :, None]

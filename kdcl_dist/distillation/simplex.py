"""Log-sum-exp over the probability simplex {a >= 0, sum a = 1}: many small convex problems at a time.

For each sample, the weights of the `linear` ensemble minimise f(a) = log sum_c exp(sum_i a_i Z_ic). The
dimension is the number of students, so Newton's method with the exact Hessian is cheap. Each Newton model is
solved on the simplex as a quadratic programme, which meets the bounds exactly.

Logits far apart make f almost piecewise linear; Newton's model is then useless far from the solution. Such a
problem is first solved at a high temperature tau, as tau * f(. / tau), and tau then falls to 1.

Passes over Z take most of the time, so a step makes as few as possible:

- Z is in bits, since powers of 2 are twice as fast as powers of e. It is stored as the last student's part
  and the differences of the others from it.
- One pass yields the gradient and the Hessian.
- A step shorter than Newton's remainder needs no second evaluation.
- On a CPU, solved problems leave the batch.

With few classes, single operations take most of the time. Everything but the passes over Z has the problems
along its last axis, and on a CPU uses NumPy. On an accelerator a look at a result stalls the queue, so all
problems take the same fixed number of steps.

Shapes: B problems, S dimension (students), R = S - 1, C classes.
"""

from __future__ import annotations

import math
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from kdcl_dist.distillation.quadratic import Array, device_of, module_of, quadratic_minimum

__all__ = ["TOLERANCE", "minimise_logsumexp"]

#: Largest KKT gap of a solution: a.g - min_i g_i bounds f(a) - min f from above.
TOLERANCE = 1e-6
#: The gap to aim at, far below the tolerance, so that a vertex is rarely better than the solution.
AIM = 1e-9
#: Limit of steps. Logits up to 1e4 take about 50; beyond 1e5, double precision ends before the gap closes.
MAX_STEPS = 200
#: Number of steps without a look at the result, on an accelerator.
BLIND_STEPS = 128
#: The same for two students: half of them halve the bracket, where Newton's steps do not help.
BLIND_HALVINGS = 100
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
    spread_B: Array
    noise_B: Array
    aim_B: Array

    def keep(self, keep_B: Array) -> _Problems:
        """The problems of some rows."""
        last_BC, apart_BRC = (part[torch.from_numpy(keep_B)] for part in self[:2])
        scratch_BRC = self.scratch_BRC[: len(keep_B)]
        return _Problems(last_BC, apart_BRC, scratch_BRC, *(part[keep_B] for part in self[3:]))


class _Search(NamedTuple):
    """The state of each problem: a step from `start` to `trial`, which counts if f falls enough."""

    trial_SB: Array
    start_SB: Array
    #: f at `start`, infinite if unknown, and its change on the way to `trial` by Newton's model.
    value_B: Array
    fall_B: Array
    tau_B: Array
    solved_B: Array

    def keep(self, keep_B: Array) -> _Search:
        """The state of some problems."""
        return _Search(*(part[..., keep_B] for part in self))


def minimise_logsumexp(logits_BSC: Tensor, early_exit: bool | None = None) -> Tensor:
    """The weights a on the simplex that minimise logsumexp_c(sum_i a_i Z_ic), for each problem.

    Args:
        logits_BSC: Z, float64, finite.
        early_exit: whether the steps end once all problems are solved. Otherwise their number is fixed, and
            no step waits for the device. None: on a CPU only.

    Returns:
        weights_BS, float64, with a KKT gap of at most `TOLERANCE` wherever double precision reaches it.
    """
    batch, students, _ = logits_BSC.shape
    if students == 1 or not batch:
        return logits_BSC.new_ones((batch, students))
    if early_exit is None:
        early_exit = logits_BSC.device.type == "cpu"
    problems = _prepared(logits_BSC)
    if students == 2:
        return _minimised_of_two(problems, early_exit)
    # More weight for students with lower logits: this start saves a step over equal weights.
    start_BS = (-0.25 * logits_BSC.amax(dim=2)).softmax(dim=1)
    if not early_exit:
        search = _begun(problems, start_BS.T)
        for _ in range(BLIND_STEPS):
            search = _advanced(problems, search)
        weights_BS: Tensor = search.trial_SB.T
        return weights_BS
    problems = _Problems(*problems[:3], *(part.cpu().numpy() for part in problems[3:]))
    return torch.from_numpy(_minimised(problems, start_BS.cpu().numpy().T)).T.to(logits_BSC.device)


def _minimised(problems: _Problems, start_SB: Array) -> Array:
    """The weights (S, B), by steps until all problems are solved."""
    search, result_SB, index_B = _begun(problems, start_SB), start_SB.copy(), np.arange(start_SB.shape[1])
    for _ in range(MAX_STEPS):
        search = _advanced(problems, search)
        keep_B = np.flatnonzero(~search.solved_B)
        if not len(keep_B):
            break
        # The copy of the open problems pays only when many others leave.
        if 4 * len(keep_B) <= 3 * len(index_B):
            result_SB[:, index_B] = search.trial_SB
            index_B, problems, search = index_B[keep_B], problems.keep(keep_B), search.keep(keep_B)
    result_SB[:, index_B] = search.trial_SB
    return result_SB


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


def _minimised_of_two(problems: _Problems, early_exit: bool) -> Tensor:
    """The weights (B, 2): the root of f's slope on [0, 1], by Newton's method kept within its bracket."""
    last_BC, apart_BC = problems.last_BC, problems.apart_BRC[:, 0]
    low_B1 = torch.zeros_like(last_BC[:, :1])
    high_B1, first_B1 = low_B1 + 1, low_B1 + 0.5
    steepness_B1 = low_B1 + torch.inf
    for _ in range(MAX_STEPS if early_exit else BLIND_HALVINGS):
        power_BC = torch.addcmul(last_BC, first_B1, apart_BC)
        power_BC = power_BC.sub_(power_BC.amax(dim=1, keepdim=True)).exp2_()
        power_BC.div_(power_BC.sum(dim=1, keepdim=True))
        weighted_BC = power_BC.mul_(apart_BC)
        slope_B1 = weighted_BC.sum(dim=1, keepdim=True)
        moment_B1 = torch.linalg.vecdot(weighted_BC, apart_BC)[:, None]
        rising_B1 = slope_B1 > 0
        gap_B1 = slope_B1 * (first_B1 - (~rising_B1).to(first_B1.dtype))
        open_B1 = gap_B1 > problems.aim_B[:, None]
        if early_exit and not bool(open_B1.any()):
            break
        low_B1, high_B1 = torch.where(rising_B1, low_B1, first_B1), torch.where(rising_B1, first_B1, high_B1)
        curvature_B1 = torch.addcmul(moment_B1, slope_B1, slope_B1, value=-1).mul_(LN2).clamp_(min=1e-100)
        newton_B1 = (first_B1 - slope_B1 / curvature_B1).clamp_(min=low_B1, max=high_B1)
        # Where Newton did not halve the slope, f has a kink: halve the bracket.
        poor_B1 = slope_B1.abs() > 0.5 * steepness_B1
        steepness_B1 = torch.where(poor_B1, torch.inf, slope_B1.abs())
        next_B1 = torch.where(poor_B1, (low_B1 + high_B1) / 2, newton_B1)
        first_B1 = torch.where(open_B1, next_B1, first_B1)
    return torch.cat([first_B1, 1 - first_B1], dim=1)


def _begun(problems: _Problems, start_SB: Array) -> _Search:
    zero_B = 0 * problems.noise_B
    tau_B = module_of(start_SB).clip(problems.spread_B / (4 * EASY_SPREAD), 1.0, None)
    return _Search(start_SB, start_SB, zero_B + math.inf, zero_B, tau_B, zero_B > 0)


def _advanced(problems: _Problems, search: _Search) -> _Search:
    """One step of each open problem: accept the trial and find the next, or halve the way to it."""
    xp = module_of(search.trial_SB)
    trial_SB, tau_B = search.trial_SB, search.tau_B
    value_B, slope_SB, hessian_SSB = _evaluate(problems, trial_SB, tau_B)
    # Relative to its mean, the smallest component is the negated KKT gap.
    slope_SB = slope_SB - (trial_SB * slope_SB).sum(0)
    gap_B = -xp.amin(slope_SB, 0)
    cold_B = tau_B <= 1
    closed_B = gap_B <= xp.where(cold_B, problems.aim_B, 0.1 * tau_B)
    taken_B = (value_B <= search.value_B + 1e-4 * search.fall_B + problems.noise_B) | closed_B
    next_SB, fall_B, exact_B = _newton_step(problems, trial_SB, slope_SB, hessian_SSB)
    cooled_B = closed_B & ~cold_B
    stays_B = search.solved_B | closed_B
    half_SB = (search.start_SB + trial_SB) / 2
    return _Search(
        xp.where(stays_B, trial_SB, xp.where(taken_B, next_SB, half_SB)),
        xp.where(taken_B, trial_SB, search.start_SB),
        xp.where(cooled_B, math.inf, xp.where(taken_B, value_B, search.value_B)),
        xp.where(taken_B, fall_B, search.fall_B / 2),
        xp.where(cooled_B, xp.clip(tau_B / COOLING, 1.0, None), tau_B),
        search.solved_B | (cold_B & (closed_B | (taken_B & exact_B))),
    )


def _evaluate(problems: _Problems, weights_SB: Array, tau_B: Array) -> tuple[Array, Array, Array]:
    """f = tau * log2 sum_c 2^(a'Z / tau), its gradient less the last student's, and its Hessian."""
    xp = module_of(weights_SB)
    weights_B1R = weights_SB[:-1].T[:, None]
    peak_B11, total_B1, sum_BR, moment_BRR = _passes(problems, weights_B1R, tau_B[:, None, None])
    peak_B, total_B, sum_RB = peak_B11[:, 0, 0], total_B1[:, 0], sum_BR.T
    moment_RRB = xp.moveaxis(moment_BRR, 0, -1)
    value_B = tau_B * (peak_B + xp.log2(total_B))
    slope_SB, hessian_SSB = xp.zeros_like(weights_SB), xp.zeros_like(weights_SB[:, None] + weights_SB)
    slope_RB = slope_SB[:-1] = sum_RB / total_B
    hessian_SSB[:-1, :-1] = (moment_RRB / total_B - slope_RB[:, None] * slope_RB) * (LN2 / tau_B)
    return value_B, slope_SB, hessian_SSB


def _passes(problems: _Problems, weights_B1R: Array, tau_B11: Array) -> tuple[Array, ...]:
    """What `_evaluate` needs of Z: the largest bits, the sum of powers, its first and second moments."""
    last_BC, apart_BRC, scratch_BRC = problems[:3]
    weights_B1R, tau_B11 = (torch.as_tensor(a, device=last_BC.device) for a in (weights_B1R, tau_B11))
    # With other strides, PyTorch would multiply problem by problem.
    mixed_B1C = torch.baddbmm(last_BC[:, None], weights_B1R.contiguous(), apart_BRC).div_(tau_B11)
    peak_B11 = mixed_B1C.amax(dim=2, keepdim=True)
    power_B1C = mixed_B1C.sub_(peak_B11).exp2_()
    weighted_BRC = torch.mul(apart_BRC, power_B1C, out=scratch_BRC)
    moment_BRR = torch.bmm(weighted_BRC, apart_BRC.mT)
    found = peak_B11, power_B1C.sum(dim=2), weighted_BRC.sum(dim=2), moment_BRR
    return found if isinstance(problems.aim_B, Tensor) else tuple(part.cpu().numpy() for part in found)


def _newton_step(
    problems: _Problems, weights_SB: Array, slope_SB: Array, hessian_SSB: Array
) -> tuple[Array, Array, Array]:
    """The minimiser of Newton's model, f's change by the slope, and whether it surely solves tau = 1."""
    xp = module_of(slope_SB)
    # The division by the scale, curvature or slope, makes flat and steep problems alike.
    scale_B = xp.maximum(xp.amax(hessian_SSB, (0, 1)), xp.amax(abs(slope_SB), 0))
    scale_B = xp.clip(scale_B, 1e-100, None)
    model_SSB = hessian_SSB / scale_B + _ridge(len(slope_SB), device_of(slope_SB))
    next_SB = quadratic_minimum(model_SSB, slope_SB / scale_B, weights_SB)
    step_SB = next_SB - weights_SB
    after_SB = slope_SB + (hessian_SSB * step_SB).sum(1)
    gap_B = (next_SB * after_SB).sum(0) - xp.amin(after_SB, 0)
    # Taylor's remainder of the gradient: the third derivative along the step is at most the range of the
    # logits times the variance along the step. The variance grows at most by 2^range of the step. At the
    # minimum of the model the variance is at most the change by the slope; near it, hardly more.
    range_B = abs(step_SB).sum(0) * problems.spread_B / 2
    fall_B = (slope_SB * step_SB).sum(0)
    rest_B = 0.5 * LN2 * problems.spread_B * (abs(fall_B) + gap_B) * xp.exp2(xp.clip(range_B, None, 50))
    return next_SB, fall_B, gap_B + rest_B <= problems.aim_B


@cache
def _ridge(size: int, device: torch.device | None) -> Array:
    """The ridge that keeps a model definite, (S, S, 1); NumPy's for None."""
    ridge_SS1 = RIDGE * np.eye(size)[:, :, None]
    return ridge_SS1 if device is None else torch.from_numpy(ridge_SS1).to(device)

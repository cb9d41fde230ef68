"""Convex problems over the probability simplex {a >= 0, sum a = 1}, many small ones at a time.

The weights of the `linear` ensemble minimise, for each sample, f(a) = log sum_c exp(sum_i a_i Z_ic).
The dimension is the number of students, so Newton's method with the exact Hessian is cheap; the bounds
are handled exactly, by solving each Newton model as a quadratic programme: of few students on all faces of
the simplex at once, else with an active-set method.
"Clamp to >= 0 and renormalise" is not a projection onto the simplex and ends at wrong points.

Logits far apart make f almost piecewise linear, where Newton's model is useless far from the solution.
Each such problem is therefore solved first at a high temperature tau, as tau * f(. / tau), and followed
down to tau = 1.

The time goes into passes over Z, so each step makes as few as it can: Z is kept in bits (powers of 2 are
twice as fast as powers of e), as the last student's part and what the others have beyond it; one pass
yields the gradient and the Hessian; a step that is shorter than Newton's remainder is not looked at again;
and on a CPU solved problems leave. With few classes it goes into single operations: what is not a pass over
Z has the problems along its last axis, and on a CPU is left to NumPy. On an accelerator, where looking at a
result stalls the queue, all problems take the same fixed number of steps.

Shapes: B problems, S dimension (students), R = S - 1, C classes.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["TOLERANCE", "minimise_logsumexp", "minimise_quadratic"]

#: Largest KKT gap of a solution: a.g - min_i g_i bounds f(a) - min f from above.
TOLERANCE = 1e-6
#: The gap that is aimed at, far below, so that a vertex is rarely better than what was found.
AIM = 1e-9
#: Logits to 1e4 take about 50 at most. Beyond 1e5 double precision ends before the gap is closed.
MAX_STEPS = 200
#: How many steps, and how many passes of each quadratic programme, are taken blindly on an accelerator.
BLIND_STEPS, BLIND_PASSES = 128, 4
#: The same for two students: half of them halve the bracket, where Newton's steps do not help.
BLIND_HALVINGS = 100
#: How far the students' logits may lie apart, in bits, for a problem to be solved at tau = 1 at once.
EASY_SPREAD = 100.0
#: By how much tau falls once the problem at the present tau is roughly solved.
COOLING = 4.0
#: Keeps Newton's model definite where students' logits agree, in units of its scale.
RIDGE = 1e-10
#: Rounding error of f in units of the largest logit: a rise below it says nothing about a step.
NOISE = 1e-14
#: Up to how many students the quadratic programmes are solved on all of their 2^S - 1 faces.
MOST_BY_FACES = 4
LN2 = math.log(2)
#: NumPy's on a CPU, whose operations on few numbers take a third of PyTorch's time, else PyTorch's. What is
#: done with one is what both write alike.
Array: TypeAlias = Any


class _Problems(NamedTuple):
    """Z in bits, as the last student's and the others' less it: exact where the students nearly agree."""

    last_BC: Tensor
    apart_BRC: Tensor
    #: Written over in every evaluation: fresh memory costs more than the arithmetic.
    scratch_BRC: Tensor
    spread_B: Array
    noise_B: Array
    aim_B: Array

    def keep(self, keep_B: Array) -> _Problems:
        last_BC, apart_BRC = (part[torch.from_numpy(keep_B)] for part in self[:2])
        scratch_BRC = self.scratch_BRC[: len(keep_B)]
        return _Problems(last_BC, apart_BRC, scratch_BRC, *(part[keep_B] for part in self[3:]))


class _Search(NamedTuple):
    """Where each problem stands: from `start` to `trial`, which is taken if f falls enough."""

    trial_SB: Array
    start_SB: Array
    #: f at `start`, infinite if unknown, and how much Newton's model lets it change on the way to `trial`.
    value_B: Array
    fall_B: Array
    tau_B: Array
    solved_B: Array

    def keep(self, keep_B: Array) -> _Search:
        return _Search(*(part[..., keep_B] for part in self))


def minimise_logsumexp(logits_BSC: Tensor, early_exit: bool | None = None) -> Tensor:
    """For each problem the weights a on the simplex that minimise logsumexp_c(sum_i a_i Z_ic).

    Args:
        logits_BSC: Z, float64, finite.
        early_exit: whether to look at results on the way and end once all are solved; without it no step
            waits for the device. None: on a CPU only.

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
    # A student with lower logits deserves more weight: a step fewer than from equal weights.
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
    """The weights, found step by step until all problems are solved."""
    search, result_SB, place_B = _begun(problems, start_SB), start_SB.copy(), np.arange(start_SB.shape[1])
    for _ in range(MAX_STEPS):
        search = _advanced(problems, search)
        keep_B = np.flatnonzero(~search.solved_B)
        if not len(keep_B):
            break
        # To move the open ones together is worth it only when many others leave.
        if 4 * len(keep_B) <= 3 * len(place_B):
            result_SB[:, place_B] = search.trial_SB
            place_B, problems, search = place_B[keep_B], problems.keep(keep_B), search.keep(keep_B)
    result_SB[:, place_B] = search.trial_SB
    return result_SB


def _prepared(logits_BSC: Tensor) -> _Problems:
    last_BC = logits_BSC[:, -1] / LN2
    apart_BRC = (logits_BSC[:, :-1] - logits_BSC[:, -1:]).div_(LN2)
    high_BR, low_BR = apart_BRC.amax(dim=2), apart_BRC.amin(dim=2)
    # No two students' difference has a larger range over the classes.
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
    tau_B = _module(start_SB).clip(problems.spread_B / (4 * EASY_SPREAD), 1.0, None)
    return _Search(start_SB, start_SB, zero_B + math.inf, zero_B, tau_B, zero_B > 0)


def _module(array: Array) -> Any:
    """The functions that belong to an array: `numpy` or `torch`."""
    return np if isinstance(array, np.ndarray) else torch


def _device(array: Array) -> torch.device | None:
    return array.device if isinstance(array, Tensor) else None


def _advanced(problems: _Problems, search: _Search) -> _Search:
    """One step of each problem that is not solved: take the trial and find the next, or go half the way."""
    xp = _module(search.trial_SB)
    trial_SB, tau_B = search.trial_SB, search.tau_B
    value_B, slope_SB, hessian_SSB = _evaluate(problems, trial_SB, tau_B)
    # Relative to its mean: the smallest component is the negated KKT gap.
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
    xp = _module(weights_SB)
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
    """All that `_evaluate` needs of Z: the largest bits, the sum of powers, its first and second moments."""
    last_BC, apart_BRC, scratch_BRC = problems[:3]
    weights_B1R, tau_B11 = (torch.as_tensor(a, device=last_BC.device) for a in (weights_B1R, tau_B11))
    # With other strides each problem would be multiplied on its own.
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
    """The minimiser of Newton's model, f's fall to it by its slope, and whether it surely solves tau = 1."""
    xp = _module(slope_SB)
    # Divided by its scale, curvature or slope, so that flat and steep problems are solved alike.
    scale_B = xp.maximum(xp.amax(hessian_SSB, (0, 1)), xp.amax(abs(slope_SB), 0))
    scale_B = xp.clip(scale_B, 1e-100, None)
    model_SSB = hessian_SSB / scale_B + _ridge(len(slope_SB), _device(slope_SB))
    next_SB = _quadratic_minimum(model_SSB, slope_SB / scale_B, weights_SB)
    step_SB = next_SB - weights_SB
    after_SB = slope_SB + (hessian_SSB * step_SB).sum(1)
    gap_B = (next_SB * after_SB).sum(0) - xp.amin(after_SB, 0)
    # Taylor's remainder of the gradient: the third derivative along the step is at most the range of
    # the logits times the variance along it, which grows by no more than 2^range of the step. At the
    # minimum of the model the variance is no more than the fall by the slope, and near it hardly more.
    range_B = abs(step_SB).sum(0) * problems.spread_B / 2
    fall_B = (slope_SB * step_SB).sum(0)
    rest_B = 0.5 * LN2 * problems.spread_B * (abs(fall_B) + gap_B) * xp.exp2(xp.clip(range_B, None, 50))
    return next_SB, fall_B, gap_B + rest_B <= problems.aim_B


def minimise_quadratic(
    hessian_BSS: Tensor, gradient_BS: Tensor, start_BS: Tensor, early_exit: bool = True
) -> Tensor:
    """The point x of the simplex that minimises g.(x - start) + (x - start)'H(x - start) / 2.

    Args:
        hessian_BSS: H, symmetric and positive definite, with diagonals of at most about 1.
        gradient_BS: g, the gradient at `start_BS`.
        start_BS: points of the simplex.
        early_exit: end once all are solved. Otherwise a few passes are made blindly, none of which waits
            for the device; the result is then better than `start_BS`, and mostly the minimum.
    """
    if start_BS.shape[1] > MOST_BY_FACES:
        return _by_active_sets(hessian_BSS, gradient_BS, start_BS, early_exit)
    x_SB: Tensor = _best_of_faces(hessian_BSS.permute(1, 2, 0), gradient_BS.T, start_BS.T)
    return x_SB.T


def _quadratic_minimum(hessian_SSB: Array, gradient_SB: Array, start_SB: Array) -> Array:
    """`minimise_quadratic`, of arrays of either module."""
    if len(start_SB) <= MOST_BY_FACES:
        return _best_of_faces(hessian_SSB, gradient_SB, start_SB)
    if isinstance(start_SB, Tensor):
        return _by_active_sets(hessian_SSB.permute(2, 0, 1), gradient_SB.T, start_SB.T, early_exit=False).T
    hessian_BSS, gradient_BS, start_BS = (torch.from_numpy(a.T) for a in (hessian_SSB, gradient_SB, start_SB))
    return _by_active_sets(hessian_BSS, gradient_BS, start_BS, early_exit=True).numpy().T


def _best_of_faces(hessian_SSB: Array, gradient_SB: Array, start_SB: Array) -> Array:
    """`minimise_quadratic`: of the stationary points of all faces that which meets its conditions best.

    H x + level = multipliers - g is solved for all faces at once by Gauss-Jordan elimination, in which the
    faces so far have two successors each: with the next coordinate 0, and with it eliminated. F faces.
    """
    xp = _module(start_SB)
    size = len(start_SB)
    right_S1B = ((hessian_SSB * start_SB).sum(1) - gradient_SB)[:, None]
    table_FSKB = xp.concatenate([hessian_SSB, right_S1B, xp.ones_like(right_S1B)], 1)[None]
    for i in range(size):
        # A column is needed only until its coordinate's round.
        column_FS1B, without_FSKB = table_FSKB[:, :, :1], table_FSKB[:, :, 1:]
        row_FKB = without_FSKB[:, i] / column_FS1B[:, i]
        with_FSKB = without_FSKB - column_FS1B * row_FKB[:, None]
        with_FSKB[:, i] = row_FKB
        table_FSKB = xp.concatenate([without_FSKB, with_FSKB], 0)
    at_zero_FSB, by_level_FSB = table_FSKB[1:, :, 0], table_FSKB[1:, :, 1]  # all but the empty face
    inside_FS1 = _faces(size, _device(start_SB))
    # So that the weights have the sum 1.
    level_FB = ((at_zero_FSB * inside_FS1).sum(1) - 1) / (by_level_FSB * inside_FS1).sum(1)
    # Weights inside a face, negated multipliers outside: of the minimum none has the wrong sign.
    found_FSB = at_zero_FSB - by_level_FSB * level_FB[:, None]
    worst_FB = xp.amin(xp.where(inside_FS1, found_FSB, -found_FSB), 1)
    best_FB = worst_FB == xp.amax(worst_FB, 0)
    x_SB = xp.where(best_FB[:, None] & inside_FS1, xp.clip(found_FSB, 0.0, None), 0.0).sum(0)
    return x_SB / x_SB.sum(0)


@cache
def _faces(size: int, device: torch.device | None) -> Array:
    """Which coordinates span each face, in the order of `_best_of_faces`: (F, S, 1). NumPy's for None."""
    inside_FS1 = (np.arange(1, 2**size)[:, None] >> np.arange(size) & 1 > 0)[:, :, None]
    return inside_FS1 if device is None else torch.from_numpy(inside_FS1).to(device)


@cache
def _ridge(size: int, device: torch.device | None) -> Array:
    """What keeps a model definite: (S, S, 1). NumPy's for None."""
    ridge_SS1 = RIDGE * np.eye(size)[:, :, None]
    return ridge_SS1 if device is None else torch.from_numpy(ridge_SS1).to(device)


def _by_active_sets(hessian_BSS: Tensor, gradient_BS: Tensor, start_BS: Tensor, early_exit: bool) -> Tensor:
    """A primal active-set method (Nocedal and Wright, 2006, algorithm 16.3) for all problems side by side."""
    size = start_BS.shape[1]
    x_BS, fixed_BS, slope_BS = start_BS, start_BS <= 0, gradient_BS
    # The conditions of a minimum on a face: H step + level = -slope, sum of step = 0.
    system_BTT = F.pad(hessian_BSS, (0, 1, 0, 1), value=1.0)
    system_BTT[:, size, size] = 0
    places_S = torch.arange(size, device=start_BS.device)
    least_B = -1e-12 * (1 + gradient_BS.abs().amax(dim=1))
    for _ in range(4 * size + 4 if early_exit else BLIND_PASSES):
        step_BS, level_B1 = _face_step(system_BTT, slope_BS, fixed_BS)
        bend_BS = torch.bmm(hessian_BSS, step_BS[:, :, None])[:, :, 0]
        length_B, blocking_B = torch.where(step_BS < 0, -x_BS / step_BS, torch.inf).min(dim=1)
        # Either a bound stops the step and joins the fixed set, or the face's minimum is reached and
        # the fixed coordinate that would lower the value most is set free.
        after_BS = torch.where(fixed_BS, slope_BS + bend_BS + level_B1, torch.inf)
        worst_B, freed_B = after_BS.min(dim=1)
        blocked_B = length_B < 1
        free_B = ~blocked_B & (worst_B < least_B)
        taken_B1 = length_B.clamp(max=1)[:, None]
        x_BS = torch.addcmul(x_BS, taken_B1, step_BS).clamp_(min=0)
        blocked_BS = blocked_B[:, None] & (places_S == blocking_B[:, None])
        x_BS.masked_fill_(blocked_BS, 0)
        if early_exit and not bool((blocked_B | free_B).any()):
            break
        slope_BS = torch.addcmul(slope_BS, taken_B1, bend_BS)
        fixed_BS = (fixed_BS | blocked_BS) & ~(free_B[:, None] & (places_S == freed_B[:, None]))
    return x_BS / x_BS.sum(dim=1, keepdim=True)


def _face_step(system_BTT: Tensor, slope_BS: Tensor, fixed_BS: Tensor) -> tuple[Tensor, Tensor]:
    """The step to the minimum on the face of free coordinates, and the negated common slope (B, 1) there."""
    size = slope_BS.shape[1]
    fixed_BT = F.pad(fixed_BS, (0, 1))
    # Rows and columns of fixed coordinates become those of the identity.
    masked_BTT = system_BTT.masked_fill(fixed_BT[:, :, None] | fixed_BT[:, None, :], 0)
    masked_BTT.diagonal(dim1=1, dim2=2).add_(fixed_BT)
    right_BT = F.pad(slope_BS.masked_fill(fixed_BS, 0).neg_(), (0, 1))
    # Of `solve` the variant that does not wait for the device to look for singular matrices.
    solution_BT = torch.linalg.solve_ex(masked_BTT, right_BT[:, :, None])[0][:, :, 0]
    return solution_BT[:, :size], solution_BT[:, size:]

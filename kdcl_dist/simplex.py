"""Convex problems over the probability simplex {a >= 0, sum a = 1}, many small ones at a time.

The weights of the `linear` ensemble minimise, for each sample, f(a) = log sum_c exp(sum_i a_i Z_ic).
The dimension is the number of students, so Newton's method with the exact Hessian is cheap; the bounds
are handled exactly, by solving each Newton model as a quadratic programme with an active-set method.
"Clamp to >= 0 and renormalise" is not a projection onto the simplex and ends at wrong points.

Logits far apart make f almost piecewise linear, where Newton's model is useless far from the solution.
Each such problem is therefore solved first at a high temperature tau, as tau * f(. / tau), and followed
down to tau = 1.

The time goes into passes over Z, so each step makes as few as it can: Z is kept in bits (powers of 2 are
twice as fast as powers of e), as the last student's part and what the others have beyond it; one pass
yields the gradient and the Hessian; a step that is shorter than Newton's remainder is not looked at again;
and on a CPU solved problems leave. On an accelerator, where looking at a result stalls the queue, all take
the same fixed number of steps instead.

Shapes: B problems, S dimension (students), R = S - 1, C classes.
"""

from __future__ import annotations

import math
from typing import NamedTuple

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
LN2 = math.log(2)


class _Problems(NamedTuple):
    """Z in bits, as the last student's and the others' less it: exact where the students nearly agree."""

    last_BC: Tensor
    apart_BRC: Tensor
    #: Written over in every evaluation: fresh memory costs more than the arithmetic.
    scratch_BRC: Tensor
    spread_B: Tensor
    noise_B: Tensor
    aim_B: Tensor

    def keep(self, keep_B: Tensor) -> _Problems:
        kept = [part[keep_B] for part in self if part is not self.scratch_BRC]
        return _Problems(kept[0], kept[1], self.scratch_BRC[: len(kept[0])], *kept[2:])


class _Search(NamedTuple):
    """Where each problem stands: from `start` to `trial`, which is taken if f falls enough."""

    trial_BS: Tensor
    start_BS: Tensor
    #: f at `start`, infinite if unknown, and how much Newton's model lets it change on the way to `trial`.
    value_B: Tensor
    fall_B: Tensor
    tau_B: Tensor
    solved_B: Tensor

    def keep(self, keep_B: Tensor) -> _Search:
        return _Search(*(part[keep_B] for part in self))


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
    uniform_BS = logits_BSC.new_full((batch, students), 1 / students)
    if students == 1 or not batch:
        return uniform_BS
    if early_exit is None:
        early_exit = logits_BSC.device.type == "cpu"
    problems = _prepared(logits_BSC)
    if students == 2:
        return _minimised_of_two(problems, early_exit)
    search = _begun(problems, uniform_BS)
    if not early_exit:
        for _ in range(BLIND_STEPS):
            search = _advanced(problems, search, early_exit=False)
        return search.trial_BS
    result_BS, place_B = uniform_BS, torch.arange(batch)
    for _ in range(MAX_STEPS):
        search = _advanced(problems, search, early_exit=True)
        keep_B = (~search.solved_B).nonzero()[:, 0]
        if not len(keep_B):
            break
        # To move the open ones together is worth it only when many others leave.
        if 4 * len(keep_B) <= 3 * len(place_B):
            result_BS[place_B] = search.trial_BS
            place_B, problems, search = place_B[keep_B], problems.keep(keep_B), search.keep(keep_B)
    result_BS[place_B] = search.trial_BS
    return result_BS


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


def _begun(problems: _Problems, start_BS: Tensor) -> _Search:
    zero_B = torch.zeros_like(problems.noise_B)
    tau_B = (problems.spread_B / (4 * EASY_SPREAD)).clamp(min=1.0)
    return _Search(start_BS, start_BS, zero_B + torch.inf, zero_B, tau_B, zero_B > 0)


def _advanced(problems: _Problems, search: _Search, early_exit: bool) -> _Search:
    """One step of each problem that is not solved: take the trial and find the next, or go half the way."""
    trial_BS, tau_B = search.trial_BS, search.tau_B
    value_B, slope_BS, hessian_BSS = _evaluate(problems, trial_BS, tau_B)
    gap_B = (trial_BS * slope_BS).sum(dim=1) - slope_BS.amin(dim=1)
    cold_B = tau_B <= 1
    closed_B = gap_B <= torch.where(cold_B, problems.aim_B, 0.1 * tau_B)
    taken_B = (value_B <= search.value_B + 1e-4 * search.fall_B + problems.noise_B) | closed_B
    next_BS, fall_B, exact_B = _newton_step(problems, trial_BS, slope_BS, hessian_BSS, early_exit)
    cooled_B = closed_B & ~cold_B
    stays_B = search.solved_B | closed_B
    half_BS = (search.start_BS + trial_BS) / 2
    return _Search(
        torch.where(stays_B[:, None], trial_BS, torch.where(taken_B[:, None], next_BS, half_BS)),
        torch.where(taken_B[:, None], trial_BS, search.start_BS),
        torch.where(cooled_B, torch.inf, torch.where(taken_B, value_B, search.value_B)),
        torch.where(taken_B, fall_B, search.fall_B / 2),
        torch.where(cooled_B, (tau_B / COOLING).clamp(min=1.0), tau_B),
        search.solved_B | (cold_B & (closed_B | (taken_B & exact_B))),
    )


def _evaluate(problems: _Problems, weights_BS: Tensor, tau_B: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """f = tau * log2 sum_c 2^(a'Z / tau), its gradient less the last student's, and its Hessian."""
    apart_BRC = problems.apart_BRC
    mixed_B1C = torch.baddbmm(problems.last_BC[:, None], weights_BS[:, None, :-1], apart_BRC)
    mixed_B1C.div_(tau_B[:, None, None])
    peak_B11 = mixed_B1C.amax(dim=2, keepdim=True)
    power_B1C = mixed_B1C.sub_(peak_B11).exp2_()
    total_B11 = power_B1C.sum(dim=2, keepdim=True)
    value_B = tau_B * (peak_B11 + total_B11.log2())[:, 0, 0]
    weighted_BRC = torch.mul(apart_BRC, power_B1C, out=problems.scratch_BRC)
    slope_BR1 = weighted_BRC.sum(dim=2, keepdim=True) / total_B11
    moment_BRR = weighted_BRC @ apart_BRC.mT / total_B11
    hessian_BRR = (moment_BRR - slope_BR1 * slope_BR1.mT) * (LN2 / tau_B)[:, None, None]
    return value_B, F.pad(slope_BR1[:, :, 0], (0, 1)), F.pad(hessian_BRR, (0, 1, 0, 1))


def _newton_step(
    problems: _Problems, weights_BS: Tensor, slope_BS: Tensor, hessian_BSS: Tensor, early_exit: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The minimiser of Newton's model, f's fall to it by its slope, and whether it surely solves tau = 1."""
    # Divided by its scale, curvature or slope, so that flat and steep problems are solved alike.
    slope_BS = slope_BS - (weights_BS * slope_BS).sum(dim=1, keepdim=True)
    curvature_B = hessian_BSS.diagonal(dim1=1, dim2=2).amax(dim=1)
    scale_B = torch.maximum(curvature_B, slope_BS.abs().amax(dim=1)).clamp(min=1e-100)
    model_BSS = hessian_BSS / scale_B[:, None, None]
    model_BSS.diagonal(dim1=1, dim2=2).add_(RIDGE)
    next_BS = minimise_quadratic(model_BSS, slope_BS / scale_B[:, None], weights_BS, early_exit)
    step_BS = next_BS - weights_BS
    bend_BS = torch.bmm(hessian_BSS, step_BS[:, :, None])[:, :, 0]
    after_BS = slope_BS + bend_BS
    gap_B = (next_BS * after_BS).sum(dim=1) - after_BS.amin(dim=1)
    # Taylor's remainder of the gradient: the third derivative along the step is at most the range of
    # the logits times the variance along it, which grows by no more than 2^range of the step.
    range_B = step_BS.abs().sum(dim=1) * problems.spread_B / 2
    rest_B = (
        0.5 * LN2 * problems.spread_B * (step_BS * bend_BS).sum(dim=1).abs() * range_B.clamp(max=50).exp2()
    )
    return next_BS, (slope_BS * step_BS).sum(dim=1), gap_B + rest_B <= problems.aim_B


def minimise_quadratic(
    hessian_BSS: Tensor, gradient_BS: Tensor, start_BS: Tensor, early_exit: bool = True
) -> Tensor:
    """The point x of the simplex that minimises g.(x - start) + (x - start)'H(x - start) / 2.

    A primal active-set method (Nocedal and Wright, 2006, algorithm 16.3) for all problems side by side.

    Args:
        hessian_BSS: H, symmetric and positive definite, with diagonals of at most about 1.
        gradient_BS: g, the gradient at `start_BS`.
        start_BS: points of the simplex.
        early_exit: end once all are solved. Otherwise a few passes are made blindly, none of which waits
            for the device; the result is then better than `start_BS`, and mostly the minimum.
    """
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

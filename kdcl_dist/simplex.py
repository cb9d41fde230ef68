"""Convex problems over the probability simplex {a >= 0, sum a = 1}, many small ones at a time.

The weights of the `linear` ensemble minimise, for each sample, f(a) = log sum_c exp(sum_i a_i Z_ic).
The dimension is the number of students, so Newton's method with the exact Hessian is cheap; the bounds
are handled exactly, by solving each Newton model as a quadratic programme with an active-set method.
"Clamp to >= 0 and renormalise" is not a projection onto the simplex and ends at wrong points.

Logits far apart make f almost piecewise linear, where Newton's model is useless far from the solution.
Each such problem is therefore solved first at a high temperature tau, as tau * f(. / tau), and followed
down to tau = 1.

Shapes: B problems, S dimension (students), C classes.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["TOLERANCE", "minimise_logsumexp", "minimise_quadratic"]

#: Largest KKT gap of a solution: a.g - min_i g_i bounds f(a) - min f from above.
TOLERANCE = 1e-6
#: The gap that is aimed at, far below, so that a vertex is rarely better than what was found.
AIM = 1e-9
#: Logits to 1e4 take about 50 at most. Beyond 1e5 double precision ends before the gap is closed.
MAX_STEPS = 200
#: How far the students' logits may lie apart for a problem to be solved at tau = 1 at once.
EASY_SPREAD = 50.0
#: By how much tau falls once the problem at the present tau is roughly solved.
COOLING = 4.0
#: Keeps Newton's model definite where students' logits agree, in units of its scale.
RIDGE = 1e-10
#: Rounding error of f in units of the largest logit: a rise below it says nothing about a step.
NOISE = 1e-14
MAX_HALVINGS = 40


class _Problems(NamedTuple):
    """Z as its mean over students and the rest, which stays exact where the students nearly agree."""

    mean_BC: Tensor
    rest_BSC: Tensor
    noise_B: Tensor
    aim_B: Tensor
    tau_B: Tensor

    def keep(self, mask_B: Tensor) -> _Problems:
        return _Problems(*(part[mask_B] for part in self))

    def value(self, weights_BS: Tensor) -> tuple[Tensor, Tensor]:
        """f = tau * logsumexp(a'Z / tau), and p = softmax(a'Z / tau)."""
        mixed_B1C = torch.baddbmm(self.mean_BC[:, None], weights_BS[:, None], self.rest_BSC)
        mixed_BC = mixed_B1C[:, 0] / self.tau_B[:, None]
        p_BC = mixed_BC.softmax(dim=1)
        # The most likely class gives the logsumexp without a second exponential.
        return self.tau_B * (mixed_BC.amax(dim=1) - p_BC.amax(dim=1).log()), p_BC


class _Point(NamedTuple):
    """At the points a: f, its gradient less the part common to all students, and its Hessian."""

    value_B: Tensor
    slope_BS: Tensor
    hessian_BSS: Tensor

    def keep(self, mask_B: Tensor) -> _Point:
        return _Point(*(part[mask_B] for part in self))


def minimise_logsumexp(logits_BSC: Tensor) -> Tensor:
    """For each problem the weights a on the simplex that minimise logsumexp_c(sum_i a_i Z_ic).

    Args:
        logits_BSC: Z, float64, finite.

    Returns:
        weights_BS, float64, with a KKT gap of at most `TOLERANCE` wherever double precision reaches it.
    """
    batch, students, _ = logits_BSC.shape
    result_BS = logits_BSC.new_full((batch, students), 1 / students)
    # What is still open is kept together and shrinks; `place` says where each problem belongs.
    place, a, problems = torch.arange(batch, device=logits_BSC.device), result_BS, _prepared(logits_BSC)
    for _ in range(MAX_STEPS):
        point = _evaluate(problems, a)
        gap_B = (a * point.slope_BS).sum(dim=1) - point.slope_BS.amin(dim=1)
        cold_B = problems.tau_B <= 1
        solved_B = gap_B <= torch.where(cold_B, problems.aim_B, 0.1 * problems.tau_B)
        keep_B = ~(solved_B & cold_B)
        if not bool(keep_B.all()):
            place, a, solved_B = place[keep_B], a[keep_B], solved_B[keep_B]
            problems, point = problems.keep(keep_B), point.keep(keep_B)
        if not len(place):
            break
        a = torch.where(solved_B[:, None], a, _newton_step(problems, a, point))
        cooler_B = (problems.tau_B / COOLING).clamp(min=1.0)
        problems = problems._replace(tau_B=torch.where(solved_B, cooler_B, problems.tau_B))
        result_BS[place] = a
    return result_BS


def minimise_quadratic(hessian_BSS: Tensor, gradient_BS: Tensor, start_BS: Tensor) -> Tensor:
    """The point x of the simplex that minimises g.(x - start) + (x - start)'H(x - start) / 2.

    A primal active-set method (Nocedal and Wright, 2006, algorithm 16.3) for all problems side by side.

    Args:
        hessian_BSS: H, symmetric and positive definite, with diagonals of at most about 1.
        gradient_BS: g, the gradient at `start_BS`.
        start_BS: points of the simplex.
    """
    x_BS, fixed_BS = start_BS.clone(), start_BS <= 0
    for _ in range(4 * start_BS.shape[1] + 4):
        slope_BS = gradient_BS + (hessian_BSS @ (x_BS - start_BS)[:, :, None])[:, :, 0]
        step_BS, level_B = _face_step(hessian_BSS, slope_BS, fixed_BS)
        room_BS = torch.where(step_BS < 0, -x_BS / step_BS, torch.inf)
        length_B, blocking_B = room_BS.min(dim=1)
        blocked_B = length_B < 1
        x_BS = (x_BS + length_B.clamp(max=1)[:, None] * step_BS).clamp_(min=0)
        # Either a bound stops the step and joins the fixed set, or the face's minimum is reached and
        # the fixed coordinate that would lower the value most is set free.
        after_BS = slope_BS + (hessian_BSS @ step_BS[:, :, None])[:, :, 0] - level_B[:, None]
        worst_B, freed_B = torch.where(fixed_BS, after_BS, torch.inf).min(dim=1)
        scale_B = slope_BS.abs().amax(dim=1)
        free_B = ~blocked_B & (worst_B < -1e-12 * (1 + scale_B))
        if not bool((blocked_B | free_B).any()):
            break
        x_BS = torch.where(_one_hot(blocked_B, blocking_B, x_BS), 0.0, x_BS)
        fixed_BS = (fixed_BS | _one_hot(blocked_B, blocking_B, x_BS)) & ~_one_hot(free_B, freed_B, x_BS)
    return x_BS / x_BS.sum(dim=1, keepdim=True)


def _prepared(logits_BSC: Tensor) -> _Problems:
    mean_BC = logits_BSC.mean(dim=1)
    rest_BSC = logits_BSC - mean_BC[:, None]
    largest_B = torch.maximum(logits_BSC.amax(dim=(1, 2)), -logits_BSC.amin(dim=(1, 2)))
    spread_B = rest_BSC.amax(dim=(1, 2)) - rest_BSC.amin(dim=(1, 2))
    noise_B = NOISE * largest_B
    aim_B = (100 * noise_B).clamp(min=AIM, max=TOLERANCE)
    return _Problems(mean_BC, rest_BSC, noise_B, aim_B, (spread_B / EASY_SPREAD).clamp(min=1.0))


def _evaluate(problems: _Problems, weights_BS: Tensor) -> _Point:
    value_B, p_BC = problems.value(weights_BS)
    slope_BS = (problems.rest_BSC @ p_BC[:, :, None])[:, :, 0]
    # Centred before it is squared: the difference of two moments would cancel where p is sharp.
    centred_BSC = (problems.rest_BSC - slope_BS[:, :, None]).mul_(p_BC.sqrt_()[:, None])
    return _Point(value_B, slope_BS, centred_BSC @ centred_BSC.mT / problems.tau_B[:, None, None])


def _newton_step(problems: _Problems, weights_BS: Tensor, point: _Point) -> Tensor:
    """The minimiser of Newton's model, or a point between, until f falls enough."""
    slope_BS = point.slope_BS - (weights_BS * point.slope_BS).sum(dim=1, keepdim=True)
    # Divided by its scale, curvature or slope, so that flat and steep problems are solved alike.
    curvature_B = point.hessian_BSS.diagonal(dim1=1, dim2=2).amax(dim=1)
    scale_B = torch.maximum(curvature_B, slope_BS.abs().amax(dim=1)).clamp(min=1e-100)
    ridge_SS = RIDGE * torch.eye(weights_BS.shape[1], dtype=torch.float64, device=weights_BS.device)
    model_BSS = point.hessian_BSS / scale_B[:, None, None] + ridge_SS
    direction_BS = minimise_quadratic(model_BSS, slope_BS / scale_B[:, None], weights_BS) - weights_BS
    fall_B = (slope_BS * direction_BS).sum(dim=1)
    length_B = torch.ones_like(fall_B)
    for _ in range(MAX_HALVINGS):
        value_B, _ = problems.value(weights_BS + length_B[:, None] * direction_BS)
        short_B = value_B <= point.value_B + 1e-4 * length_B * fall_B + problems.noise_B
        if bool(short_B.all()):
            break
        length_B = torch.where(short_B, length_B, length_B / 2)
    return weights_BS + length_B[:, None] * direction_BS


def _face_step(hessian_BSS: Tensor, slope_BS: Tensor, fixed_BS: Tensor) -> tuple[Tensor, Tensor]:
    """The step to the minimum on the face of free coordinates, and the common slope there."""
    batch, size = slope_BS.shape
    free_BS = (~fixed_BS).to(slope_BS.dtype)
    system = slope_BS.new_zeros(batch, size + 1, size + 1)
    system[:, :size, :size] = hessian_BSS * free_BS[:, :, None] * free_BS[:, None, :]
    system[:, :size, :size] += torch.diag_embed(1 - free_BS)
    system[:, size, :size] = system[:, :size, size] = free_BS
    right = torch.cat([-slope_BS * free_BS, slope_BS.new_zeros(batch, 1)], dim=1)
    solution = torch.linalg.solve(system, right[:, :, None])[:, :, 0]
    return solution[:, :size] * free_BS, -solution[:, size]


def _one_hot(mask_B: Tensor, index_B: Tensor, like_BS: Tensor) -> Tensor:
    places = torch.arange(like_BS.shape[1], device=like_BS.device)
    return mask_B[:, None] & (places == index_B[:, None])

"""Quadratic programmes over the probability simplex {x >= 0, sum x = 1}, many small ones at a time.

Programmes of few students are solved on all faces of the simplex at once, larger ones with an active-set
method. "Clamp to >= 0 and renormalise" is no projection onto the simplex and ends at wrong points.

Shapes: B problems, S dimension (students), T = S + 1, F faces.
"""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["minimise_quadratic", "quadratic_minimum"]

#: Largest number of students whose programmes are solved on all 2^S - 1 faces.
MOST_BY_FACES = 4
#: Number of passes of each programme without a look at the result, on an accelerator.
BLIND_PASSES = 4


def minimise_quadratic(
    hessian_BSS: Tensor, gradient_BS: Tensor, start_BS: Tensor, early_exit: bool = True
) -> Tensor:
    """The point x of the simplex that minimises g.(x - start) + (x - start)'H(x - start) / 2.

    Args:
        hessian_BSS: H, symmetric and positive definite, with diagonals of at most about 1.
        gradient_BS: g, the gradient at `start_BS`.
        start_BS: points of the simplex.
        early_exit: whether the passes end once all problems are solved. Otherwise their number is fixed, and
            none waits for the device; the result then improves on `start_BS`, and is mostly the minimum.
    """
    if start_BS.shape[1] > MOST_BY_FACES:
        return _by_active_sets(hessian_BSS, gradient_BS, start_BS, early_exit)
    return _best_of_faces(hessian_BSS.permute(1, 2, 0), gradient_BS.T, start_BS.T).T


def quadratic_minimum(hessian_SSB: Tensor, gradient_SB: Tensor, start_SB: Tensor) -> Tensor:
    """`minimise_quadratic` without an early exit, with the problems along the last axis."""
    if len(start_SB) <= MOST_BY_FACES:
        return _best_of_faces(hessian_SSB, gradient_SB, start_SB)
    return _by_active_sets(hessian_SSB.permute(2, 0, 1), gradient_SB.T, start_SB.T, early_exit=False).T


def _best_of_faces(hessian_SSB: Tensor, gradient_SB: Tensor, start_SB: Tensor) -> Tensor:
    """`minimise_quadratic` by the stationary points of all faces: the one that meets its conditions best.

    Gauss-Jordan elimination solves H x + level = multipliers - g for all faces at once. Each coordinate
    doubles the faces so far: one copy with the coordinate 0, and one with the coordinate eliminated.
    """
    size = len(start_SB)
    right_S1B = ((hessian_SSB * start_SB).sum(1) - gradient_SB)[:, None]
    table_FSKB = torch.concatenate([hessian_SSB, right_S1B, torch.ones_like(right_S1B)], 1)[None]
    for i in range(size):
        # A column is needed only until its coordinate is eliminated.
        column_FS1B, without_FSKB = table_FSKB[:, :, :1], table_FSKB[:, :, 1:]
        row_FKB = without_FSKB[:, i] / column_FS1B[:, i]
        with_FSKB = without_FSKB - column_FS1B * row_FKB[:, None]
        with_FSKB[:, i] = row_FKB
        table_FSKB = torch.concatenate([without_FSKB, with_FSKB], 0)
    at_zero_FSB, by_level_FSB = table_FSKB[1:, :, 0], table_FSKB[1:, :, 1]  # all but the empty face
    inside_FS1 = _faces(size, start_SB.device)
    # The level at which the weights have the sum 1.
    level_FB = ((at_zero_FSB * inside_FS1).sum(1) - 1) / (by_level_FSB * inside_FS1).sum(1)
    # Weights inside a face, negated multipliers outside: at the minimum none has the wrong sign.
    found_FSB = at_zero_FSB - by_level_FSB * level_FB[:, None]
    worst_FB = torch.amin(torch.where(inside_FS1, found_FSB, -found_FSB), 1)
    best_FB = worst_FB == torch.amax(worst_FB, 0)
    x_SB = torch.where(best_FB[:, None] & inside_FS1, torch.clip(found_FSB, 0.0, None), 0.0).sum(0)
    return x_SB / x_SB.sum(0)


@cache
def _faces(size: int, device: torch.device) -> Tensor:
    """Whether a coordinate spans a face, in the order of `_best_of_faces`, (F, S, 1)."""
    faces_F1 = torch.arange(1, 2**size, device=device)[:, None]
    return ((faces_F1 >> torch.arange(size, device=device)) & 1 > 0)[:, :, None]


def _by_active_sets(hessian_BSS: Tensor, gradient_BS: Tensor, start_BS: Tensor, early_exit: bool) -> Tensor:
    """A primal active-set method (Nocedal and Wright, 2006, algorithm 16.3), for all problems at once."""
    size = start_BS.shape[1]
    x_BS, fixed_BS, slope_BS = start_BS, start_BS <= 0, gradient_BS
    # The conditions of a minimum on a face: H step + level = -slope, sum of step = 0.
    system_BTT = F.pad(hessian_BSS, (0, 1, 0, 1), value=1.0)
    system_BTT[:, size, size] = 0
    index_S = torch.arange(size, device=start_BS.device)
    least_B = -1e-12 * (1 + gradient_BS.abs().amax(dim=1))
    for _ in range(4 * size + 4 if early_exit else BLIND_PASSES):
        step_BS, level_B1 = _face_step(system_BTT, slope_BS, fixed_BS)
        bend_BS = torch.bmm(hessian_BSS, step_BS[:, :, None])[:, :, 0]
        length_B, blocking_B = torch.where(step_BS < 0, -x_BS / step_BS, torch.inf).min(dim=1)
        # Either a bound stops the step and its coordinate becomes fixed, or the step reaches the minimum of
        # the face and the fixed coordinate that would lower the value most becomes free.
        after_BS = torch.where(fixed_BS, slope_BS + bend_BS + level_B1, torch.inf)
        worst_B, freed_B = after_BS.min(dim=1)
        blocked_B = length_B < 1
        free_B = ~blocked_B & (worst_B < least_B)
        taken_B1 = length_B.clamp(max=1)[:, None]
        x_BS = torch.addcmul(x_BS, taken_B1, step_BS).clamp_(min=0)
        blocked_BS = blocked_B[:, None] & (index_S == blocking_B[:, None])
        x_BS.masked_fill_(blocked_BS, 0)
        if early_exit and not bool((blocked_B | free_B).any()):
            break
        slope_BS = torch.addcmul(slope_BS, taken_B1, bend_BS)
        fixed_BS = (fixed_BS | blocked_BS) & ~(free_B[:, None] & (index_S == freed_B[:, None]))
    return x_BS / x_BS.sum(dim=1, keepdim=True)


def _face_step(system_BTT: Tensor, slope_BS: Tensor, fixed_BS: Tensor) -> tuple[Tensor, Tensor]:
    """The step to the minimum on the face of free coordinates, and the negated common slope (B, 1) there."""
    size = slope_BS.shape[1]
    fixed_BT = F.pad(fixed_BS, (0, 1))
    # Rows and columns of fixed coordinates become those of the identity.
    masked_BTT = system_BTT.masked_fill(fixed_BT[:, :, None] | fixed_BT[:, None, :], 0)
    masked_BTT.diagonal(dim1=1, dim2=2).add_(fixed_BT)
    right_BT = F.pad(slope_BS.masked_fill(fixed_BS, 0).neg_(), (0, 1))
    # Unlike `solve`, `solve_ex` does not wait for the device to look for singular matrices.
    solution_BT = torch.linalg.solve_ex(masked_BTT, right_BT[:, :, None])[0][:, :, 0]
    return solution_BT[:, :size], solution_BT[:, size:]

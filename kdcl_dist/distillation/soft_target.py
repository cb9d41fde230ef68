"""The soft target of a method: of all students, or set by set of those whose logits of a sample exist.

Shapes: S students, B batch, C classes.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from kdcl_dist.distillation.ensembles import checked
from kdcl_dist.distillation.methods import METHODS, Context, Target

__all__ = ["log_soft_target"]


def log_soft_target(
    method: str | Target,
    logits_SBC: Tensor,
    labels_B: Tensor,
    temperature: float,
    weights_S: Tensor | None = None,
    present_SB: Tensor | None = None,
    context: Context | None = None,
) -> Tensor:
    """The log-probabilities (B, C) of the soft target at the temperature T.

    Args:
        method: a name of `METHODS` that has a soft target, or a function like theirs.
        logits_SBC, labels_B: the students' logits, the true classes or the class probabilities (B, C).
        temperature: T > 0. The choice and the weights of students are those at T = 1; T softens the result.
        weights_S: the weights of "general", which needs them. None: those of the context.
        present_SB: whether a student's logits of a sample exist, as at least one student's must. The target
            is the ensemble of these students, with the weights of "general" in proportion. None: all exist.
        context: what the method may know. None: nothing but the weights.

    Raises:
        ValueError: an argument does not fit, or the method is unknown.
    """
    if not 0 < temperature < float("inf"):
        raise ValueError(f"temperature: must be above 0 and finite (got {temperature})")
    target = _named(method) if isinstance(method, str) else method
    if context is None or weights_S is not None:
        context = replace(context or Context(), weights_S=weights_S)
    if present_SB is None:
        return target(logits_SBC, labels_B, temperature, context)
    return _of_present(target, logits_SBC, labels_B, temperature, context, present_SB)


def _named(method: str) -> Target:
    target = METHODS[method].target if method in METHODS else None
    if target is None:
        known = ", ".join(name for name, entry in METHODS.items() if entry.target is not None)
        raise ValueError(f"method: unknown ensemble {method!r}; have {known}")
    return target


def _of_present(
    method: Target,
    logits_SBC: Tensor,
    labels_B: Tensor,
    temperature: float,
    context: Context,
    present_SB: Tensor,
) -> Tensor:
    """The soft target, set by set: the samples whose logits the same students have."""
    if present_SB.shape != logits_SBC.shape[:2] or not bool(present_SB.any(dim=0).all()):
        raise ValueError("present_SB: each sample needs the logits of at least one student")
    target_BC = torch.empty_like(checked(logits_SBC, labels_B)[0])
    sets, which_B = torch.unique(present_SB, dim=1, return_inverse=True)
    for number in range(sets.shape[1]):
        rows = (which_B == number).nonzero()[:, 0]
        there_S = present_SB[:, rows[0]]
        target_BC[rows] = method(
            logits_SBC[there_S][:, rows], labels_B[rows], temperature, context.of(there_S)
        )
    return target_BC

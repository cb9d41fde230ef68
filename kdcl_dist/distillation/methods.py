"""The methods that form one soft target for all students, by name. A user's own goes through the same door.

Shapes: S students, B batch, C classes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kdcl_dist.distillation.ensembles import checked, general_log, linear, mean, min_logit, naive

__all__ = ["TARGETS", "Context", "Target", "log_soft_target"]


@dataclass(frozen=True)
class Context:
    """What a method knows beside the logits and the labels.

    Attributes:
        step: the global step, from 0.
        epoch: of the step, from 0.
        students: the names of the students whose logits these are, in their order.
        weights_S: their weights of "general", float64, with sum 1; equal ones unless the method is "general".
        state: the method's own, kept from step to step. Checkpoints hold it, so its values are tensors,
            numbers, texts, and lists and dicts of them.
    """

    step: int = 0
    epoch: int = 0
    students: tuple[str, ...] = ()
    weights_S: Tensor | None = None
    state: dict[str, Any] = field(default_factory=dict)

    def of(self, there_S: Tensor) -> Context:
        """The context of some of the students."""
        students = [name for name, there in zip(self.students, there_S.tolist(), strict=False) if there]
        weights_S = None if self.weights_S is None else _renormalised(self.weights_S, there_S)
        return replace(self, students=tuple(students), weights_S=weights_S)


#: From logits_SBC, labels_B, the temperature T and the context to the log-probabilities (B, C) of the soft
#: target at T. Where samples are mixed, labels are class probabilities (B, C).
Target = Callable[[Tensor, Tensor, float, Context], Tensor]


def _softened(combine: Callable[[Tensor, Tensor], Tensor]) -> Target:
    """The soft target of an ensemble of logits."""

    def target(logits_SBC: Tensor, labels_B: Tensor, temperature: float, context: Context) -> Tensor:
        return F.log_softmax(combine(logits_SBC, labels_B).div_(temperature), dim=1)

    return target


def _general(logits_SBC: Tensor, labels_B: Tensor, temperature: float, context: Context) -> Tensor:
    if context.weights_S is None:
        raise ValueError("weights_S: method 'general' needs the students' weights (got None)")
    return general_log(checked(logits_SBC, labels_B), context.weights_S, temperature)


#: The methods with one soft target for all students: one entry for each.
TARGETS: dict[str, Target] = {
    "naive": _softened(naive),
    "linear": _softened(linear),
    "min_logit": _softened(min_logit),
    "mean": _softened(mean),
    "general": _general,
}


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
        method: a name of `TARGETS`, or a function like those.
        logits_SBC, labels_B: the students' logits, the true classes or the class probabilities (B, C).
        temperature: T > 0. The choice and the weights of students are those at T = 1; T softens the result.
        weights_S: the weights of "general", which needs them.
        present_SB: whether a student's logits of a sample exist, as at least one student's must. The target
            is the ensemble of these students, with the weights of "general" in proportion. None: all exist.
        context: what the method may know. None: nothing but the weights.

    Raises:
        ValueError: an argument does not fit, or the method is unknown.
    """
    if not 0 < temperature < float("inf"):
        raise ValueError(f"temperature: must be above 0 and finite (got {temperature})")
    if isinstance(method, str):
        if method not in TARGETS:
            raise ValueError(f"method: unknown ensemble {method!r}; have {', '.join(TARGETS)}")
        method = TARGETS[method]
    context = replace(context or Context(), weights_S=weights_S)
    if present_SB is None:
        return method(logits_SBC, labels_B, temperature, context)
    return _of_present(method, logits_SBC, labels_B, temperature, context, present_SB)


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


def _renormalised(weights_S: Tensor, there_S: Tensor) -> Tensor:
    """The weights of some students, in proportion, with sum 1; equal weights if all are 0."""
    if bool(there_S.all()):
        return weights_S
    weights_S = weights_S[there_S.to(weights_S.device)]
    total = weights_S.sum()
    return weights_S / total if total > 0 else torch.full_like(weights_S, 1 / len(weights_S))

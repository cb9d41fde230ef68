"""The distillation methods: an entry of `METHODS` for each, and the functions of the entries.

A method of the user's own is a function of the same form. Recipes are checked without torch, so a function
imports what it needs when it is called.

Shapes: S students, P peers, B batch, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

from kdcl_dist.distillation.divergences import Divergence, kl

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["METHODS", "Context", "Method", "PeerLoss", "Target"]


@dataclass(frozen=True)
class Context:
    """What a method knows beside the logits and the labels.

    Attributes:
        step: the global step, from 0.
        epoch: of the step, from 0.
        students: the names of the students whose logits these are, in their order: of a method with peers,
            the peers.
        weights_S: their weights of "general", float64, with sum 1; equal ones unless the method is "general".
            None with peers.
        state: the method's own, kept from step to step. Checkpoints hold it, so its values are tensors,
            numbers, texts, and lists and dicts of them. Not with peers.
        teacher: the name of the frozen teacher, or the weights of several by their names; None: none.
        student: with peers, the name of the student that learns.
        divergence: with peers, the recipe's loss.
        fixed: with peers, the names of those that do not learn in this epoch, or never.
        average: with peers, replaces tensors by their mean over the student's replicas, each of which calls
            it; None: there is one, or the student learns from some samples of a step only (`data.sees`).
    """

    step: int = 0
    epoch: int = 0
    students: tuple[str, ...] = ()
    weights_S: Tensor | None = None
    state: dict[str, Any] = field(default_factory=dict)
    teacher: str | Mapping[str, float] | None = None
    student: str | None = None
    divergence: Divergence = kl
    fixed: tuple[str, ...] = ()
    average: Callable[[list[Tensor]], None] | None = None

    def of(self, there_S: Tensor) -> Context:
        """The context of some of the students."""
        students = [name for name, there in zip(self.students, there_S.tolist(), strict=False) if there]
        weights_S = None if self.weights_S is None else _renormalised(self.weights_S, there_S)
        return replace(self, students=tuple(students), weights_S=weights_S)


class Target(Protocol):
    """Forms one soft target for all students, in the coordinator.

    Where samples are mixed, labels are class probabilities (B, C).
    """

    def __call__(
        self, logits_SBC: Tensor, labels_B: Tensor, temperature: float, context: Context, /
    ) -> Tensor:
        """The log-probabilities (B, C) of the soft target at the temperature T."""


class PeerLoss(Protocol):
    """Forms the distillation loss of one student from its peers' logits, in that student's process."""

    def __call__(
        self,
        logits_BC: Tensor,
        peers_PBC: Tensor,
        labels_B: Tensor,
        temperature: float,
        context: Context,
        /,
    ) -> Tensor | None:
        """The loss, a scalar with a gradient to the student's own logits. P is 1 or more.

        None, of a built-in method that `pauses`: the student learns nothing from this step.
        """


@dataclass(frozen=True)
class Method:
    """One entry: what a recipe and its checks must know of a method, and its function.

    Attributes:
        source: what a student learns from beside the labels, as the recipe's reference says it.
        target: of a method with one soft target for all students.
        peer_loss: of a method that teaches student by student. Neither: students learn alone.
        holdout: whether the students' weights on held-out samples are needed.
        teacher: whether frozen teachers are needed.
        one_class: whether a sample must have one true class, which a mixed one has not.
        pauses: whether a student may learn nothing from a step.
    """

    source: str
    target: Target | None = None
    peer_loss: PeerLoss | None = None
    holdout: bool = False
    teacher: bool = False
    one_class: bool = False
    pauses: bool = False


def _naive(logits_SBC: Tensor, labels_B: Tensor, temperature: float, context: Context) -> Tensor:
    from kdcl_dist.distillation import ensembles

    return _softened(ensembles.naive(logits_SBC, labels_B), temperature)


def _linear(logits_SBC: Tensor, labels_B: Tensor, temperature: float, context: Context) -> Tensor:
    from kdcl_dist.distillation import ensembles

    return _softened(ensembles.linear(logits_SBC, labels_B), temperature)


def _min_logit(logits_SBC: Tensor, labels_B: Tensor, temperature: float, context: Context) -> Tensor:
    from kdcl_dist.distillation import ensembles

    return _softened(ensembles.min_logit(logits_SBC, labels_B), temperature)


def _general(logits_SBC: Tensor, labels_B: Tensor, temperature: float, context: Context) -> Tensor:
    from kdcl_dist.distillation import ensembles

    if context.weights_S is None:
        raise ValueError("weights_S: method 'general' needs the students' weights (got None)")
    return ensembles.general_log(ensembles.checked(logits_SBC, labels_B), context.weights_S, temperature)


def _mean(logits_SBC: Tensor, labels_B: Tensor, temperature: float, context: Context) -> Tensor:
    from kdcl_dist.distillation import ensembles

    return _softened(ensembles.mean(logits_SBC, labels_B), temperature)


def _dml(
    logits_BC: Tensor, peers_PBC: Tensor, labels_B: Tensor, temperature: float, context: Context
) -> Tensor:
    from kdcl_dist.distillation.losses import mutual_loss

    peers_PBC = peers_PBC.log_softmax(dim=2)
    return mutual_loss(logits_BC, peers_PBC, divergence=context.divergence, labels_B=labels_B)


def _switokd(
    logits_BC: Tensor, peers_PBC: Tensor, labels_B: Tensor, temperature: float, context: Context
) -> Tensor | None:
    from kdcl_dist.distillation.switching import switched_loss

    return switched_loss(
        logits_BC,
        peers_PBC,
        labels_B,
        temperature,
        divergence=context.divergence,
        learn_P=[name not in context.fixed for name in context.students],
        average=context.average,
    )


def _teacher(logits_SBC: Tensor, labels_B: Tensor, temperature: float, context: Context) -> Tensor:
    import torch

    from kdcl_dist.distillation import ensembles

    weights = context.teacher if isinstance(context.teacher, Mapping) else {context.teacher: 1.0}
    places = [place for place, name in enumerate(context.students) if name in weights]
    if not places:
        raise ValueError(f"teacher: {context.teacher!r} is none of {', '.join(context.students) or 'nobody'}")
    if len(places) == 1:
        return (logits_SBC[places[0]] / temperature).log_softmax(dim=1)
    given = [weights[context.students[place]] for place in places]
    weights_N = torch.tensor(given, dtype=torch.float64) / sum(given)
    return ensembles.general_log(logits_SBC[places], weights_N, temperature)


#: The methods by name, in the order of the recipe's reference. To add one, add its entry and its function.
METHODS: dict[str, Method] = {
    "none": Method("nothing."),
    "naive": Method("the logits of the student with the smallest cross-entropy on the sample.", _naive),
    "linear": Method(
        "the convex combination of the students' logits with the smallest cross-entropy.", _linear
    ),
    "min_logit": Method(
        "the smallest logit of each class, relative to the true class.", _min_logit, one_class=True
    ),
    "general": Method(
        "the students' probabilities, weighted by their errors on held-out samples.", _general, holdout=True
    ),
    "mean": Method("the mean of the students' logits.", _mean),
    "dml": Method("the probabilities of each peer (deep mutual learning).", peer_loss=_dml),
    "switokd": Method(
        "the probabilities of each peer, while students that are too far ahead pause (SwitOKD).",
        peer_loss=_switokd,
        pauses=True,
    ),
    "teacher": Method(
        "the probabilities of a frozen student with given `weights`, or their mean over several.",
        _teacher,
        teacher=True,
    ),
}


def _softened(logits_BC: Tensor, temperature: float) -> Tensor:
    """The soft target of an ensemble's logits, which it overwrites."""
    return logits_BC.div_(temperature).log_softmax(dim=1)


def _renormalised(weights_S: Tensor, there_S: Tensor) -> Tensor:
    """The weights of some students, in proportion, with sum 1; equal weights if all are 0."""
    if bool(there_S.all()):
        return weights_S
    weights_S = weights_S[there_S.to(weights_S.device)]
    total = weights_S.sum()
    return weights_S / total if total > 0 else weights_S.new_full(weights_S.shape, 1 / len(weights_S))

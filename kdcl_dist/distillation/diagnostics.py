"""Figures of one step: the quality of each ensemble, each student's part in it, and the conflict of losses.

The paper compares its ensembles by final accuracy only. docs/analysis.md has the formulas of these figures.
No figure changes the training.

Shapes: S students, B samples, C classes, P parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdcl_dist.distillation import ensembles
from kdcl_dist.distillation.labels import is_mixed, largest_class, loss_of
from kdcl_dist.distillation.losses import Losses

__all__ = ["Conflict", "Figures", "conflict", "measure"]


class Conflict(NamedTuple):
    """The gradients of a student's distillation loss and of its cross-entropy, compared.

    Attributes:
        cosine: cosine between the two gradients over all parameters; below 0 the losses conflict.
        ratio: lambda times the norm of the distillation loss's gradient, over that of the cross-entropy's.
    """

    cosine: float
    ratio: float


class Figures(NamedTuple):
    """Named figures of one step: of the ensembles, and of each student by name."""

    ensembles: dict[str, float]
    students: dict[str, dict[str, float]]


def measure(
    names: Sequence[str], logits_SBC: Tensor, labels_B: Tensor, temperature: float, weights_S: Tensor
) -> Figures:
    """All figures of the logits of one step, for any method of the run.

    For E in naive, linear, min_logit (not of mixed samples), mean, general:
        E_loss           mean cross-entropy of the target at T = 1, nats
        E_entropy        mean entropy of the target at the temperature T, nats
        E_wrong          share of samples on which the target's largest class is not the label
    For each student:
        win_share        share of samples on which `naive` chooses it
        linear_weight    its mean weight in `linear`
        error            share of samples on which its largest class is not the label
        disagreement/X   share of samples on which its largest class differs from student X's

    Args:
        names: the students in the order of the cohort.
        logits_SBC, labels_B: the students' logits, the true classes. Of mixed samples the class probabilities
            (B, C): the loss is that with all of them, and the label the class with the largest share.
        temperature: T of the run.
        weights_S: the weights of `general`.
    """
    weights_SB = ensembles.linear_weights(logits_SBC, labels_B)
    combined = {
        "naive": ensembles.naive(logits_SBC, labels_B),
        "linear": ensembles.combine(logits_SBC, labels_B, weights_SB),
        "mean": ensembles.mean(logits_SBC, labels_B),
    }
    if not is_mixed(labels_B):
        combined["min_logit"] = ensembles.min_logit(logits_SBC, labels_B)
    of_ensembles: dict[str, float] = {}
    for name, logits_BC in combined.items():
        sharp_BC, soft_BC = (F.log_softmax(logits_BC / t, dim=1) for t in (1.0, temperature))
        of_ensembles |= _figures(name, sharp_BC, soft_BC, labels_B)
    sharp_BC, soft_BC = (ensembles.general_log(logits_SBC, weights_S, t) for t in (1.0, temperature))
    of_ensembles |= _figures("general", sharp_BC, soft_BC, labels_B)
    return Figures(of_ensembles, _of_students(names, logits_SBC, labels_B, weights_SB))


def _of_students(
    names: Sequence[str], logits_SBC: Tensor, labels_B: Tensor, weights_SB: Tensor
) -> dict[str, dict[str, float]]:
    winner_B, choice_SB = ensembles.naive_choice(logits_SBC, labels_B), logits_SBC.argmax(dim=2)
    found = {}
    for index, name in enumerate(names):
        found[name] = {
            "win_share": _share(winner_B == index),
            "linear_weight": float(weights_SB[index].mean()),
            "error": _share(choice_SB[index] != largest_class(labels_B)),
        }
        others = ((other, j) for j, other in enumerate(names) if j != index)
        found[name] |= {
            f"disagreement/{other}": _share(choice_SB[index] != choice_SB[j]) for other, j in others
        }
    return found


def conflict(
    losses: Losses,
    weight: float,
    model: nn.Module,
    scale: Callable[[Tensor], Tensor] = lambda loss: loss,
    average: Callable[[list[Tensor]], None] | None = None,
) -> Conflict:
    """Compare the gradients of both parts of a student's loss. The graph remains for the step itself.

    Args:
        losses: the losses of the step, before their backward pass.
        weight: lambda.
        model: the student's network.
        scale: multiplies a loss, so that half-precision gradients do not underflow; it cancels out.
        average: replaces gradients, in place, by their mean over the student's replicas.

    Returns:
        NaN in both figures if no parameter has both gradients.
    """
    parameters_P = [parameter for parameter in model.parameters() if parameter.requires_grad]
    # A gradient that is missing is zero: replicas, which average all, may not use the same parameters.
    task, distillation = (
        torch.autograd.grad(scale(loss), parameters_P, retain_graph=True, materialize_grads=True)
        for loss in (losses.task, losses.distillation)
    )
    pairs = list(zip(task, distillation, strict=True))
    if average is not None:
        average([gradient for pair in pairs for gradient in pair])
    dot = torch.stack([(t * d).sum() for t, d in pairs]).sum()
    task_norm, distillation_norm = (
        torch.stack([gradient.square().sum() for gradient in gradients]).sum().sqrt()
        for gradients in zip(*pairs, strict=True)
    )
    cosine, ratio = torch.stack(
        [dot / (task_norm * distillation_norm), distillation_norm / task_norm]
    ).tolist()
    return Conflict(cosine, weight * ratio)


def _figures(name: str, sharp_BC: Tensor, soft_BC: Tensor, labels_B: Tensor) -> dict[str, float]:
    entropy_B = -(soft_BC.exp() * soft_BC.clamp_min(torch.finfo(soft_BC.dtype).min)).sum(dim=1)
    return {
        f"{name}_loss": loss_of(sharp_BC, labels_B),
        f"{name}_entropy": float(entropy_B.mean(dtype=torch.float64)),
        f"{name}_wrong": _share(sharp_BC.argmax(dim=1) != largest_class(labels_B)),
    }


def _share(hits_B: Tensor) -> float:
    return float(hits_B.double().mean())

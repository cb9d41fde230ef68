"""The labels of a step: classes, int64 (B,), or class probabilities (B, C) where samples are mixed.

`F.cross_entropy` takes both forms as well.

Shapes: S students, B batch, C classes.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["check_labels", "is_mixed", "largest_class", "logit_of_label", "loss_of", "two_hot"]

#: How far the sum of a sample's class probabilities may be from 1.
TOLERANCE = 1e-3


def two_hot(labels_B: Tensor, partners_B: Tensor, share: float, classes: int) -> Tensor:
    """The class probabilities (B, C), float32, of mixed samples: lambda e_y + (1 - lambda) e_y'.

    Mixup (Zhang et al., ICLR 2018, eq. 1) and cutmix (Yun et al., ICCV 2019, eq. 1) have the same labels.

    Args:
        labels_B: y.
        partners_B: y', the classes of the samples that are mixed in.
        share: lambda, of all samples.
        classes: C.
    """
    labels_BC = torch.zeros(len(labels_B), classes).scatter_(1, labels_B[:, None], share)
    rest_B1 = torch.full((len(labels_B), 1), 1 - share, dtype=labels_BC.dtype)
    return labels_BC.scatter_add_(1, partners_B[:, None], rest_B1)


def is_mixed(labels: Tensor) -> bool:
    """Whether labels are class probabilities."""
    return labels.ndim == 2


def check_labels(labels: Tensor, batch: int, classes: int) -> None:
    """Raise ValueError for labels that do not fit so many samples and classes."""
    mixed = is_mixed(labels)
    shape = (batch, classes) if mixed else (batch,)
    if labels.shape != shape or not (labels.is_floating_point() if mixed else labels.dtype == torch.int64):
        got = f"{labels.dtype} {tuple(labels.shape)}"
        raise ValueError(
            f"labels_B: int64 of shape ({batch},), or class probabilities of shape ({batch}, {classes}), are "
            f"needed (got {got})"
        )
    # On an accelerator a look at the labels would wait for the device; there the gather refuses classes.
    if batch and labels.is_cpu:
        lowest, highest = map(float, labels.aminmax())
        if not mixed and (lowest < 0 or highest >= classes):
            raise ValueError(f"labels_B: {lowest:.0f} to {highest:.0f} for {classes} classes")
        if mixed and not (lowest >= 0 and bool(((labels.sum(dim=1) - 1).abs() <= TOLERANCE).all())):
            raise ValueError("labels_B: class probabilities must be non-negative, each row with sum 1")


def largest_class(labels: Tensor) -> Tensor:
    """The class with the largest share in each label, int64 (B,)."""
    return labels.argmax(dim=1) if is_mixed(labels) else labels


def logit_of_label(logits_SBC: Tensor, labels: Tensor) -> Tensor:
    """<p, z>, (S, B, 1): the logit of the true class, or its expectation, float64, over the probabilities."""
    if is_mixed(labels):
        return (logits_SBC.double() * labels.double()).sum(dim=2, keepdim=True)
    return logits_SBC.gather(2, labels.view(1, -1, 1).expand(len(logits_SBC), -1, 1))


def loss_of(log_p_BC: Tensor, labels: Tensor) -> float:
    """The mean cross-entropy of log-probabilities, in nats."""
    return -float(logit_of_label(log_p_BC[None], labels).mean(dtype=torch.float64))

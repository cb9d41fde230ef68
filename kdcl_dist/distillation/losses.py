"""The losses of KDCL (Guo et al., CVPR 2020, eq. 1-2) and of deep mutual learning (Zhang et al., CVPR 2018).

Shapes: B batch, C classes, K samples with a soft target, P peers.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from kdcl_dist.distillation.divergences import Divergence, kl

__all__ = ["Losses", "distillation_loss", "dml_loss", "kdcl_loss", "mutual_loss", "task_loss"]


class Losses(NamedTuple):
    """The loss of one student, as scalars in nats.

    Attributes:
        total: `task` + weight * `distillation`, the loss of the backward pass.
        task: the cross-entropy.
        distillation: the divergence from the soft target or from the peers.
    """

    total: Tensor
    task: Tensor
    distillation: Tensor

    @classmethod
    def of(cls, task: Tensor, distillation: Tensor, weight: float) -> Losses:
        """CE(z, y) + lambda * distillation (KDCL eq. 1); `weight` is lambda."""
        return cls(task + weight * distillation, task, distillation)


def task_loss(
    logits_BC: Tensor,
    labels_B: Tensor,
    *,
    label_smoothing: float = 0.0,
    class_weights_C: Tensor | None = None,
) -> Tensor:
    """Cross-entropy CE(z, y), mean over the batch, in nats.

    Args:
        logits_BC: z.
        labels_B: the classes y, or class probabilities (B, C).
        label_smoothing: e; the label has probability 1 - e + e/C, every other class e/C (Szegedy et al.,
            2016). Class probabilities p become (1 - e) p + e/C.
        class_weights_C: the factors w of the classes' terms; None: 1. With them and p the loss is
            -(1/B) sum_b sum_c w_c p_bc log q_bc, q = softmax(z). `F.cross_entropy` divides by the sum of the
            labels' weights instead of B, so that a sample's weight would depend on the others in its batch.
    """
    logits_BC = _widened(logits_BC)
    if labels_B.is_floating_point():
        labels_B = labels_B.to(logits_BC.dtype)
    if class_weights_C is None:
        return F.cross_entropy(logits_BC, labels_B, label_smoothing=label_smoothing)
    weights_C = class_weights_C.to(logits_BC.dtype)
    total = F.cross_entropy(logits_BC, labels_B, weights_C, reduction="sum", label_smoothing=label_smoothing)
    return total / len(logits_BC)


def distillation_loss(
    logits_BC: Tensor,
    log_target_BC: Tensor,
    temperature: float,
    covered_K: Tensor | None = None,
    *,
    divergence: Divergence = kl,
    labels_B: Tensor | None = None,
) -> Tensor:
    """T^2 * KL(p || softmax(z / T)), or another divergence, averaged over the batch, in nats.

    T^2 keeps the gradient's size independent of T (Hinton et al., 2015). The target is a constant. The paper
    does not say so, but a gradient through the target would let students move it towards themselves.

    Args:
        logits_BC: z.
        log_target_BC: log p, the log-probabilities of the soft target at the temperature T.
        temperature: T.
        covered_K: indices of the samples with a soft target, None for all. The other samples add nothing to
            the sum over the batch. The divisor is B nevertheless, so that a sample has the same weight in
            every batch.
        divergence: a function of `kdcl_dist.distillation.divergences.LOSSES`, or one like theirs.
        labels_B: the classes, or class probabilities (B, C), for a divergence that needs them.
    """
    log_q_BC = F.log_softmax(_widened(logits_BC) / temperature, dim=1)
    if covered_K is not None:
        labels_B = None if labels_B is None else labels_B[covered_K]
        log_q_BC, log_target_BC = log_q_BC[covered_K], log_target_BC[covered_K]
    total = divergence(log_q_BC, log_target_BC.detach().to(log_q_BC), labels_B, temperature)
    return temperature**2 * (total / len(logits_BC))


def kdcl_loss(
    logits_BC: Tensor,
    labels_B: Tensor,
    log_target_BC: Tensor,
    temperature: float,
    weight: float,
    covered_K: Tensor | None = None,
    *,
    divergence: Divergence = kl,
    label_smoothing: float = 0.0,
    class_weights_C: Tensor | None = None,
) -> Losses:
    """CE(z, y) + lambda * T^2 * KL(p || softmax(z / T)) of one student (KDCL eq. 1-2).

    Cross-entropy keeps weight 1; `weight` is lambda. Other arguments as `task_loss` and `distillation_loss`.
    """
    task = task_loss(logits_BC, labels_B, label_smoothing=label_smoothing, class_weights_C=class_weights_C)
    distillation = distillation_loss(
        logits_BC, log_target_BC, temperature, covered_K, divergence=divergence, labels_B=labels_B
    )
    return Losses.of(task, distillation, weight)


def dml_loss(
    logits_BC: Tensor,
    labels_B: Tensor,
    peer_log_probabilities_PBC: Tensor,
    weight: float = 1.0,
    *,
    label_smoothing: float = 0.0,
    class_weights_C: Tensor | None = None,
) -> Losses:
    """CE(z, y) + weight * `mutual_loss`: deep mutual learning (Zhang et al., 2018).

    Args:
        logits_BC: z.
        labels_B: y, or class probabilities (B, C).
        peer_log_probabilities_PBC: log p_j, constants. Without peers the second part is 0.
        weight: 1 in that paper.
        label_smoothing, class_weights_C: as `task_loss`.
    """
    task = task_loss(logits_BC, labels_B, label_smoothing=label_smoothing, class_weights_C=class_weights_C)
    peers_PBC = peer_log_probabilities_PBC
    distillation = mutual_loss(logits_BC, peers_PBC) if len(peers_PBC) else torch.zeros_like(task)
    return Losses(task + weight * distillation, task, distillation)


def mutual_loss(
    logits_BC: Tensor,
    peer_log_probabilities_PBC: Tensor,
    *,
    divergence: Divergence = kl,
    labels_B: Tensor | None = None,
) -> Tensor:
    """Mean over the peers j, at least one, of KL(p_j || softmax(z)) at T = 1 (Zhang et al., 2018, eq. 8).

    Other arguments as `distillation_loss`.
    """
    log_q_BC = F.log_softmax(_widened(logits_BC), dim=1)
    peers_PBC = peer_log_probabilities_PBC.detach().to(log_q_BC)
    totals = [divergence(log_q_BC, log_p_BC, labels_B, 1.0) for log_p_BC in peers_PBC]
    return torch.stack([total / len(logits_BC) for total in totals]).mean()


def _widened(logits_BC: Tensor) -> Tensor:
    """The logits in float32 at least: half precision is too coarse for a sum over classes."""
    return logits_BC if logits_BC.dtype == torch.float64 else logits_BC.float()

"""SwitOKD: mutual learning in which a student that is too far ahead pauses (Qian et al., ECCV 2022).

Shapes: P peers, B batch, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from kdcl_dist.distillation.divergences import Divergence, kl

__all__ = ["switched_loss"]

Average = Callable[[list[Tensor]], None]


def switched_loss(
    logits_BC: Tensor,
    peers_PBC: Tensor,
    labels_B: Tensor,
    temperature: float,
    *,
    divergence: Divergence = kl,
    learn_P: Sequence[bool] | None = None,
    average: Average | None = None,
) -> Tensor | None:
    """Mean over the peers j of T^2 KL(p_j || p), 0 for those that the student is too far ahead of.

    p = softmax(z / T) of the student's logits, p_j of a peer's. The student is ahead of a peer whose distance
    from the labels is larger, ||p_j - y|| > ||p - y||, and too far ahead if their gap ||p - p_j|| is above

        delta = ||p_j - y|| - exp(-||p - y|| / (||p - y|| + ||p_j - y||)) ||p - y||,

    the paper's adaptive switching threshold. The norms are sums over the classes, averaged over the batch.
    The student pauses if it is too far ahead of all that it is ahead of: with two students this is the
    paper's expert mode, and all else its learning mode; with several, its topology of one teacher and several
    students.

    Args:
        logits_BC: z.
        peers_PBC: the peers' logits.
        labels_B: y, the classes, or class probabilities (B, C).
        temperature: T.
        divergence: in place of KL.
        learn_P: whether a peer learns; the student waits for no other. None: all do.
        average: replaces tensors by their mean over the student's replicas, if it has some; of these, one
            may have no sample. They decide by all of them.

    Returns None if the student pauses.
    """
    gains = _compare(logits_BC.detach(), peers_PBC, labels_B, temperature, average)
    too_far_P = _too_far(gains, [True] * len(peers_PBC) if learn_P is None else learn_P)
    if too_far_P is None:
        return None
    if not len(logits_BC):
        return logits_BC.sum() * 0
    log_q_BC = F.log_softmax(logits_BC.float() / temperature, dim=1)
    log_p_PBC = F.log_softmax(peers_PBC.to(log_q_BC) / temperature, dim=2)
    totals = [
        divergence(log_q_BC, log_p_BC, labels_B, temperature)
        for log_p_BC, too_far in zip(log_p_PBC, too_far_P, strict=True)
        if not too_far
    ]
    return temperature**2 * (torch.stack(totals).sum() / (len(peers_PBC) * len(logits_BC)))


def _too_far(gains: Sequence[tuple[bool, bool]], learn_P: Sequence[bool]) -> list[bool] | None:
    """For each peer whether the student is too far ahead of it; None if it is of all that it is ahead of.

    Args:
        gains: as `_compare` gives them.
        learn_P: whether a peer learns.
    """
    ahead_P = [ahead and learns for (ahead, _), learns in zip(gains, learn_P, strict=True)]
    too_far_P = [ahead and far for ahead, (_, far) in zip(ahead_P, gains, strict=True)]
    return None if any(ahead_P) and too_far_P == ahead_P else too_far_P


def _compare(
    logits_BC: Tensor, peers_PBC: Tensor, labels_B: Tensor, temperature: float, average: Average | None
) -> list[tuple[bool, bool]]:
    """For each peer whether the student is ahead of it, and whether their gap is above the threshold."""
    everyone = torch.cat([logits_BC[None], peers_PBC]).float()  # the student comes first
    p = F.softmax(everyone / temperature, dim=2)
    y_BC = labels_B if labels_B.is_floating_point() else F.one_hot(labels_B, p.shape[2])
    apart = torch.stack([(p - y_BC).abs(), (p - p[0]).abs()]).sum(dim=3)
    if average is None:
        figures = apart.mean(dim=2)
    else:  # replicas may learn from different numbers of samples
        figures, samples = apart.sum(dim=2), apart.new_tensor([len(logits_BC)])
        average([figures, samples])
        figures = figures / samples
    (own, *errors_P), (_, *gaps_P) = figures.double().cpu()
    deltas_P = [error - torch.exp(-own / (own + error)) * own for error in errors_P]
    compared = zip(errors_P, gaps_P, deltas_P, strict=True)
    return [(bool(own < error), bool(gap > delta)) for error, gap, delta in compared]

"""A method of your own with peers: each student learns from those of its peers that are right about a sample.

Shapes: P peers, B batch, C classes.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from kdcl_dist.ensembles import Context


def loss(
    logits_BC: Tensor, peers_PBC: Tensor, labels_B: Tensor, temperature: float, context: Context
) -> Tensor:
    """T^2 KL(p || q) from each peer that is right, mean over peers and samples.

    Labels are classes, or class probabilities (B, C) where samples are mixed.
    """
    classes_B = labels_B if labels_B.ndim == 1 else labels_B.argmax(dim=1)
    log_p_PBC = F.log_softmax(peers_PBC / temperature, dim=2)
    log_q_BC = F.log_softmax(logits_BC / temperature, dim=1)
    kl_PB = (log_p_PBC.exp() * (log_p_PBC - log_q_BC)).sum(dim=2)
    right_PB = peers_PBC.argmax(dim=2) == classes_B
    return temperature**2 * (kl_PB * right_PB).mean()

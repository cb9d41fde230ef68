"""A distillation method of your own: the students' probabilities, weighted by how well each did lately.

Shapes: S students, B batch, C classes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from kdcl_dist.ensembles import Context


def target(
    logits_SBC: Tensor, labels_B: Tensor, temperature: float, context: Context, memory: float = 0.9
) -> Tensor:
    """The soft target's log-probabilities (B, C); `memory` is the share of the past in the running losses."""
    labels_SB1 = labels_B.expand(len(logits_SBC), -1)[:, :, None]
    loss_S = -F.log_softmax(logits_SBC, dim=2).gather(2, labels_SB1).mean(dim=(1, 2))
    for name, loss in zip(context.students, loss_S.tolist(), strict=True):
        context.state[name] = memory * context.state.get(name, loss) + (1 - memory) * loss
    recent_S = torch.tensor([context.state[name] for name in context.students])
    log_weights_S = F.log_softmax(-recent_S, dim=0)
    log_p_SBC = F.log_softmax(logits_SBC / temperature, dim=2)
    return torch.logsumexp(log_p_SBC + log_weights_S[:, None, None], dim=0)

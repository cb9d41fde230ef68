"""The ensemble of trained networks as one network.

Shapes: S networks, B batch, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Ensemble"]


class Ensemble(nn.Module):
    """The weighted mean of the probabilities of several networks (KDCL, Guo et al., CVPR 2020, eq. 8).

    Args:
        networks: by name; each maps the same inputs to logits (B, C).
        weights: of the networks, with sum 1; None: equal ones. They are a part of the state.

    Attributes:
        students: the networks, each under its name; "_" stands for a dot, and follows a name that is taken.
    """

    weights: Tensor

    def __init__(self, networks: Mapping[str, nn.Module], weights: Sequence[float] | None = None) -> None:
        super().__init__()
        self.students = nn.ModuleDict()
        for name, network in networks.items():
            key = name.replace(".", "_")
            while hasattr(self.students, key):
                key += "_"
            self.students[key] = network
        equal = [1 / len(networks)] * len(networks)
        self.register_buffer("weights", torch.tensor(equal if weights is None else weights))

    def forward(self, *inputs: Tensor, **named: Tensor) -> Tensor:
        """The logarithms (B, C) of the mean probabilities, which serve as logits; float32."""
        logits = [network(*inputs, **named).float() for network in self.students.values()]
        log_p_SBC = F.log_softmax(torch.stack(logits), dim=2)
        return torch.logsumexp(log_p_SBC + self.weights.log()[:, None, None], dim=0)

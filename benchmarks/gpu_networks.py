"""Networks for `gpu`: one that computes deterministically, and a peer that costs the GPU nothing."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kdcl_dist.models import build

__all__ = ["Peer", "deterministic"]


class Peer(nn.Module):
    """A peer on another device, in place of a second GPU: linear in one pixel, so next to no computing."""

    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.linear = nn.Linear(in_channels, num_classes)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """The logits (B, num_classes)."""
        logits_BC: Tensor = self.linear(images_BCHW[:, :, 0, 0])
        return logits_BC


def deterministic(num_classes: int, in_channels: int) -> nn.Module:
    """ResNet-20, or cnn_small for images of one channel; its process computes deterministically from now on.

    For cuBLAS, CUBLAS_WORKSPACE_CONFIG must be set as well. An operation that has no deterministic kernel
    warns: the comparison then tells whether it matters.
    """
    torch.use_deterministic_algorithms(True, warn_only=True)
    return build("resnet20" if in_channels == 3 else "cnn_small", num_classes, in_channels)

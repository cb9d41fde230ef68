"""Batch norm with the statistics of all replicas of a student, on any device and for shares of any size.

torch.nn.SyncBatchNorm does the same on GPUs only, by layers of another class.

Shapes: B rows of one replica, C channels, D = C + 1.
"""

from __future__ import annotations

from collections.abc import Callable
from types import MethodType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

__all__ = ["synchronise_batchnorm"]


def synchronise_batchnorm(model: nn.Module, group_now: Callable[[], Any]) -> None:
    """Let every batch norm of the network take its statistics over all ranks of a process group.

    The network keeps its layers, and so the names and values of its state.

    Args:
        model: the network.
        group_now: gives the group. The layers do not hold it: its connections close with its last reference.
    """

    def forward(layer: Any, x_BC: Tensor) -> Tensor:
        """The layer's forward pass, with the group's statistics."""
        return _normalise(layer, x_BC, group_now())

    for layer in list(model.modules()):
        # torch's batch norms of one, two and three dimensions have no public base class.
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            layer.forward = MethodType(forward, layer)  # type: ignore[method-assign]


def _normalise(layer: Any, x_BC: Tensor, group: Any) -> Tensor:
    """Batch norm with the statistics of all replicas' rows; x of shape (B, C, ...)."""
    if not layer.training:
        plain_BC: Tensor = type(layer).forward(layer, x_BC)
        return plain_BC
    dims = [dim for dim in range(x_BC.dim()) if dim != 1]
    wide_BC = x_BC.float() if x_BC.dtype in (torch.float16, torch.bfloat16) else x_BC
    own_1 = wide_BC.new_full((1,), x_BC.numel() // x_BC.shape[1])  # images can differ in size
    sums_D = _sum(torch.cat([wide_BC.sum(dims), own_1]), group)
    count = sums_D[-1].detach()
    mean_C = sums_D[:-1] / count
    shape = [1, -1] + [1] * (x_BC.dim() - 2)
    centred_BC = wide_BC - mean_C.view(shape)
    variance_C = _sum(centred_BC.square().sum(dims), group) / count
    _update_running(layer, mean_C.detach(), variance_C.detach(), count)
    out_BC = centred_BC * torch.rsqrt(variance_C + layer.eps).view(shape)
    if layer.affine:
        out_BC = out_BC * layer.weight.view(shape) + layer.bias.view(shape)
    return out_BC.to(x_BC.dtype)


def _update_running(layer: Any, mean_C: Tensor, variance_C: Tensor, count: Tensor) -> None:
    """Update the running statistics as torch's own batch norm does, with the unbiased variance."""
    if not layer.track_running_stats:
        return
    layer.num_batches_tracked.add_(1)
    momentum = layer.momentum
    share = 1 / float(layer.num_batches_tracked) if momentum is None else momentum
    with torch.no_grad():
        layer.running_mean.lerp_(mean_C.to(layer.running_mean), share)
        layer.running_var.lerp_((variance_C * count / (count - 1).clamp(min=1)).to(layer.running_var), share)


def _sum(tensor: Tensor, group: Any) -> Tensor:
    """The sum over all replicas, through which gradients flow back to each."""
    total: Tensor = _Sum.apply(tensor, group)
    return total


class _Sum(torch.autograd.Function):
    """All-reduce whose gradient is all-reduced too: each replica's rows count in all replicas' statistics."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, group: Any) -> Tensor:
        """The sum."""
        ctx.group = group
        total = tensor.clone()
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """The sum of the gradients."""
        total = gradient.contiguous().clone()
        dist.all_reduce(total, group=ctx.group)
        return total, None

"""Several workers that are one student: each takes a share of the step, and all learn from the whole.

Gradients are averaged by torch's DistributedDataParallel over a process group of the student's own, NCCL
where each replica has a GPU to itself, else gloo. Parameters so stay equal; buffers, such as the running
statistics of batch norm, are the first replica's whenever the student is tested or saved.
"""

from __future__ import annotations

import os
from datetime import timedelta
from types import MethodType
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from kdcl_dist.membership.store import Store
from kdcl_dist.utils.network import interface_of

__all__ = ["Replicas", "broke_off"]

#: torch's annotations leave out the stores and the backends.
c10d: Any = dist


class Replicas:
    """One replica's link to the others of its student.

    Args:
        store: below which they meet; the student's own part of the run's store.
        replica: its number among `count`.
        host: address of this process.
        device: where the network is.
        limit_s: seconds after which one that does not answer is given up.
    """

    def __init__(
        self, store: Store, replica: int, count: int, *, host: str, device: torch.device, limit_s: float
    ) -> None:
        self.group: Any | None = _form(store, replica, count, host, device, timedelta(seconds=limit_s))
        self.count = count

    def wrap(self, model: nn.Module) -> nn.Module:
        """The network with averaged gradients; the same parameters, so its own state stays plain."""
        return DistributedDataParallel(model, process_group=self.group, forward_sync_buffers=False)

    def synchronise_batchnorm(self, model: nn.Module) -> None:
        """Let every batch norm of the network take its statistics over all replicas.

        The network's own layers stay, and so do the names and values of its state.
        """
        for layer in list(model.modules()):
            if isinstance(layer, nn.modules.batchnorm._BatchNorm):
                layer.forward = MethodType(self._normalise, layer)  # type: ignore[method-assign]

    def _normalise(self, layer: Any, x_BC: torch.Tensor) -> torch.Tensor:
        """Batch norm with the statistics of all replicas' rows; x of shape (B, C, ...)."""
        if not layer.training:
            plain_BC: torch.Tensor = type(layer).forward(layer, x_BC)
            return plain_BC
        dims = [dim for dim in range(x_BC.dim()) if dim != 1]
        wide_BC = x_BC.float() if x_BC.dtype in (torch.float16, torch.bfloat16) else x_BC
        own_1 = wide_BC.new_full((1,), x_BC.numel() // x_BC.shape[1])  # images can differ in size
        sums_D = _sum(torch.cat([wide_BC.sum(dims), own_1]), self.group)
        count = sums_D[-1].detach()
        mean_C = sums_D[:-1] / count
        shape = [1, -1] + [1] * (x_BC.dim() - 2)
        centred_BC = wide_BC - mean_C.view(shape)
        variance_C = _sum(centred_BC.square().sum(dims), self.group) / count
        _track(layer, mean_C.detach(), variance_C.detach(), count)
        out_BC = centred_BC * torch.rsqrt(variance_C + layer.eps).view(shape)
        if layer.affine:
            out_BC = out_BC * layer.weight.view(shape) + layer.bias.view(shape)
        return out_BC.to(x_BC.dtype)

    def share_buffers(self, model: nn.Module) -> None:
        """Make all replicas' buffers those of the first."""
        for buffer in model.buffers():
            dist.broadcast(buffer, group_src=0, group=self.group)

    def average(self, tensors: list[torch.Tensor]) -> None:
        """Replace tensors by their mean over the replicas."""
        for tensor in tensors:
            dist.all_reduce(tensor, group=self.group)
            tensor.div_(self.count)

    def close(self) -> None:
        """Let go of the group; its connections close when the network that averages over it goes, too."""
        self.group = None


def _sum(tensor: torch.Tensor, group: Any) -> torch.Tensor:
    """The sum over all replicas, through which gradients flow back to each."""
    total: torch.Tensor = _Sum.apply(tensor, group)
    return total


class _Sum(torch.autograd.Function):
    """All-reduce whose gradient is all-reduced too: each replica's rows count in all replicas' statistics."""

    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor, group: Any) -> torch.Tensor:
        """The sum."""
        ctx.group = group
        total = tensor.clone()
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        """The sum of the gradients."""
        total = gradient.contiguous().clone()
        dist.all_reduce(total, group=ctx.group)
        return total, None


def _track(layer: Any, mean_C: torch.Tensor, variance_C: torch.Tensor, count: torch.Tensor) -> None:
    """Move the running statistics as torch's own batch norm does, with the unbiased variance."""
    if not layer.track_running_stats:
        return
    layer.num_batches_tracked.add_(1)
    momentum = layer.momentum
    share = 1 / float(layer.num_batches_tracked) if momentum is None else momentum
    with torch.no_grad():
        layer.running_mean.lerp_(mean_C.to(layer.running_mean), share)
        layer.running_var.lerp_((variance_C * count / (count - 1).clamp(min=1)).to(layer.running_var), share)


def broke_off(error: BaseException) -> bool:
    """Whether an error is that of a connection between replicas, not of the network itself."""
    text = str(error).lower()
    return isinstance(error, dist.DistBackendError) or "gloo" in text or "connection closed by peer" in text


def _form(store: Store, replica: int, count: int, host: str, device: torch.device, limit: timedelta) -> Any:
    """A process group on a store of our own, never torch's global default."""
    kinds = dist.ProcessGroup.BackendType
    if device.type == "cuda" and dist.is_nccl_available():
        if (name := interface_of(host)) is not None:
            # "=" is NCCL's for: this one, and none whose name begins like it.
            os.environ.setdefault("NCCL_SOCKET_IFNAME", f"={name}")
        options = c10d.ProcessGroupNCCL.Options()
        options._timeout = limit
        backend, kind = c10d.ProcessGroupNCCL(store, replica, count, options), kinds.NCCL
    else:
        options = c10d.ProcessGroupGloo._Options()
        options._devices = [c10d.ProcessGroupGloo.create_device(hostname=host)]
        options._timeout = limit
        backend, kind = c10d.ProcessGroupGloo(store, replica, count, options), kinds.GLOO
    group = c10d.ProcessGroup(store, replica, count)
    group._set_default_backend(kind)
    group._register_backend(device, kind, backend)
    return group

"""One step of an optimiser on the gradient that a network has."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["apply_gradient", "is_bad"]


def is_bad(model: nn.Module) -> Tensor:
    """1 if the norm of the gradient is not finite, else 0; replicas have the same gradient, and so agree.

    The norm of finite numbers can overflow. Such a gradient is useless too: clipping would make it 0, and the
    squares in Adam's state would be infinite for ever.
    """
    gradients = [each.grad for each in model.parameters() if each.grad is not None]
    norm = torch.stack(torch._foreach_norm(gradients)).sum().float()
    return torch.nan_to_num(norm * 0, nan=1.0)  # fewer operations than `isfinite` takes


def apply_gradient(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    bad: Tensor,
    limit: float | None,
) -> None:
    """Let the optimiser step, unless the gradient is bad.

    Args:
        model: the network.
        optimizer: of its parameters.
        scaler: has scaled the loss if it is enabled; it then finds by itself whether the gradient is bad.
        bad: of `is_bad`, otherwise.
        limit: greatest norm of the gradient, which is shortened to it. None: no limit.
    """
    if scaler.is_enabled():
        if limit is not None:
            scaler.unscale_(optimizer)
            _clip(model, limit)
        scaler.step(optimizer)
        scaler.update()
        return
    if optimizer.defaults.get("fused"):  # skips the step on the GPU: the host does not wait
        optimizer.found_inf = bad  # type: ignore[attr-defined]
    elif bad.device.type != "meta" and bad:
        return
    _clip(model, limit)
    optimizer.step()


def _clip(model: nn.Module, limit: float | None) -> None:
    """Shorten the gradient of all parameters together; replicas have the same gradient."""
    if limit is not None:
        nn.utils.clip_grad_norm_(model.parameters(), limit)

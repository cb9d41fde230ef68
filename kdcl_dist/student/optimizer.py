"""The torch optimiser of a recipe."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from kdcl_dist.config import optim as specs

__all__ = ["build_optimizer", "load_optimizer"]


def build_optimizer(
    spec: specs.Optimizer, model: nn.Module, fused: bool | None = None
) -> torch.optim.Optimizer:
    """The optimiser over all parameters of a network.

    Args:
        spec: of the recipe.
        model: the network, already on its device.
        fused: whether one kernel updates all parameters; then the host also does not wait for the GPU to
            check a loss scale. None: True on a GPU. On the CPU the last bits of the results differ.
    """
    parameters = list(model.parameters())
    if fused is None:
        fused = all(each.is_cuda and each.is_floating_point() for each in parameters)
    if isinstance(spec, specs.SGD):
        sgd = torch.optim.SGD(
            parameters,
            lr=spec.lr,
            momentum=spec.momentum,
            nesterov=spec.nesterov,
            weight_decay=spec.weight_decay,
            fused=fused or None,
        )
        if fused and spec.momentum:  # a skipped first step would leave the buffers without values
            learned = (each for each in parameters if each.requires_grad)
            sgd.state.update({each: {"momentum_buffer": torch.zeros_like(each)} for each in learned})
        return sgd
    kind = torch.optim.AdamW if isinstance(spec, specs.AdamW) else torch.optim.Adam
    betas = (spec.beta1, spec.beta2)
    return kind(
        parameters,
        lr=spec.lr,
        betas=betas,
        eps=spec.eps,
        weight_decay=spec.weight_decay,
        fused=fused or None,
    )


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load the state of an optimiser, which may come from another kind of device.

    The stored state says whether its optimiser was fused; this optimiser keeps its own setting.
    """
    fused = optimizer.defaults["fused"]
    groups = [group | {"fused": fused} for group in state["param_groups"]]
    optimizer.load_state_dict(state | {"param_groups": groups})

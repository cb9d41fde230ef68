"""The torch optimiser of a recipe."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from kdcl_dist.config import optim as specs
from kdcl_dist.models.layers import layers_of
from kdcl_dist.utils.extras import load_extra
from kdcl_dist.utils.import_strings import load_object

__all__ = ["build_optimizer", "load_optimizer"]


def build_optimizer(
    spec: specs.Optimizer, model: nn.Module, fused: bool | None = None
) -> torch.optim.Optimizer:
    """The optimiser over all parameters of a network.

    Args:
        spec: of the recipe.
        model: the network, already on its device.
        fused: whether one kernel updates all parameters; then the host also does not wait for the GPU to
            check a loss scale. None: True on a GPU. On the CPU the last bits of the results differ. The
            optimisers of `FUSED` have such a kernel, the others ignore this argument.

    Raises:
        ImportError: timm is missing, or an import string names nothing.
        TypeError: an import string gives no optimiser. Its own code may raise any exception.
    """
    parameters = list(model.parameters())
    if fused is None:
        fused = all(each.is_cuda and each.is_floating_point() for each in parameters)
    kernel = {"fused": fused or None} if spec.name in FUSED else {}
    optimizer = _maker(spec)(_groups(spec, model), **_arguments(spec), **kernel)
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(f"{spec.name!r} gives {type(optimizer).__name__}, not a torch.optim.Optimizer")
    if fused and isinstance(spec, specs.SGD) and spec.momentum:
        # A skipped first step would leave the buffers without values.
        learned = (each for each in parameters if each.requires_grad)
        optimizer.state.update({each: {"momentum_buffer": torch.zeros_like(each)} for each in learned})
    return optimizer


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load the state of an optimiser, which may come from another kind of device.

    The stored state says whether its optimiser was fused; this optimiser keeps its own setting.
    """
    if "fused" in optimizer.defaults:
        own = {"fused": optimizer.defaults["fused"]}
        state = state | {"param_groups": [group | own for group in state["param_groups"]]}
    optimizer.load_state_dict(state)


def _groups(spec: specs.Optimizer, model: nn.Module) -> list[Any]:
    """The parameters; in groups where they differ in their learning rate, or in having weight decay.

    A group's `lr_scale`, if it has one, is a factor of its learning rate, which `Student.learn` applies.
    """
    if spec.decay_norm_and_bias and spec.layer_decay == 1:
        return list(model.parameters())
    layers = layers_of(model) if spec.layer_decay < 1 else {}
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        depth = max(layers.values(), default=0) - layers.get(name, 0)
        decays = spec.decay_norm_and_bias or parameter.ndim > 1
        options = {} if decays else {"weight_decay": 0.0}
        if layers:
            options["lr_scale"] = spec.layer_decay**depth
        groups.setdefault((-depth, not decays), {"params": []} | options)["params"].append(parameter)
    return [groups[key] for key in sorted(groups)]


Maker = Callable[..., torch.optim.Optimizer]

#: The optimisers with a kernel that updates all parameters at once.
FUSED: dict[str, Maker] = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
PLAIN: dict[str, Maker] = {
    "rmsprop": torch.optim.RMSprop,
    "nadamw": partial(torch.optim.NAdam, decoupled_weight_decay=True),
}
OF_TIMM = {"lamb": "Lamb", "lion": "Lion"}


def _maker(spec: specs.Optimizer) -> Maker:
    """What makes the optimiser from the parameters and the arguments."""
    found: Maker
    if isinstance(spec, specs.OwnOptimizer):
        found = load_object(spec.name)
    elif spec.name in OF_TIMM:
        found = getattr(load_extra("timm.optim"), OF_TIMM[spec.name])
    else:
        found = (FUSED | PLAIN)[spec.name]
    return found


def _arguments(spec: specs.Optimizer) -> dict[str, Any]:
    """The arguments of the optimiser beside the parameters."""
    found = spec.model_dump(exclude={"name", *specs.Groups.model_fields})
    if isinstance(spec, (specs.Adam, specs.Lion)):
        found["betas"] = (found.pop("beta1"), found.pop("beta2"))
    return found

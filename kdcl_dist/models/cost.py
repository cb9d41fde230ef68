"""The cost of a network: its parameters, and its multiply-adds on one image.

Tensors on the meta device have shapes but no values, so the count takes milliseconds and no memory for any
network.

Shapes: C channels, H W image.
"""

from __future__ import annotations

import copy
from typing import NamedTuple

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from kdcl_dist.models.registry import BUILT_IN, Usual

__all__ = ["Cost", "built_in_cost", "multiply_adds", "parameters"]


class Cost(NamedTuple):
    """The cost of one network: its number of parameters, and its multiply-adds on one image."""

    parameters: int
    multiply_adds: int


def parameters(module: nn.Module) -> int:
    """The number of parameters, learned or frozen; running statistics do not count."""
    return sum(parameter.numel() for parameter in module.parameters())


def multiply_adds(module: nn.Module, shape_CHW: tuple[int, int, int]) -> int:
    """The number of multiply-adds for one image in evaluation mode.

    Convolutions and matrix products count; biases, norms, activations and pooling do not. Published figures
    count so too; their "FLOPs" is often this number, sometimes twice it.

    Args:
        module: the network, which does not change: the count uses a copy without values.
        shape_CHW: shape of the image.
    """
    empty = copy.deepcopy(module).to("meta").eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        empty(torch.empty(1, *shape_CHW, device="meta"))
    return int(counter.get_total_flops()) // 2


def built_in_cost(name: str, usual: Usual) -> Cost:
    """The cost of a built-in network for its usual input."""
    with torch.device("meta"):
        module = BUILT_IN[name](usual.classes, usual.shape_CHW[0])
    return Cost(parameters(module), multiply_adds(module, usual.shape_CHW))

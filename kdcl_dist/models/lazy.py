"""Lazy layers, such as `torch.nn.LazyLinear`: their sizes are those of their first input."""

from __future__ import annotations

from itertools import chain

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from kdcl_dist.data.samples import Inputs, described, forward
from kdcl_dist.errors import ModelError, of_user_code

__all__ = ["has_lazy_layers", "initialise"]


def has_lazy_layers(network: nn.Module) -> bool:
    """Whether a layer of the network has seen no input yet, so that it has no size."""
    return any(hasattr(module, "_initialize_hook") for module in network.modules())


def initialise(network: nn.Module, name: str, inputs: Inputs) -> None:
    """Give lazy layers their sizes, by passes in evaluation mode and, if some still wait, in training mode.

    Weights that have no values yet are drawn from torch's generator; the mode is the one before.

    Args:
        network: with or without lazy layers.
        name: the network's name in the recipe, for the error message.
        inputs: a batch as the network gets it.

    Raises:
        ModelError: a pass fails, or leaves a layer without a size.
    """
    before = network.training
    for training in (False, True):
        if has_lazy_layers(network):
            network.train(training)
            with (
                of_user_code(ModelError, f"model {name!r} fails on {described(inputs)}"),
                torch.no_grad(),
            ):
                forward(network, inputs)
    network.train(before)
    unknown = [
        path for path, each in chain(network.named_parameters(), network.named_buffers()) if is_lazy(each)
    ]
    if unknown:
        raise ModelError(
            f"model {name!r}: no pass uses {unknown[0]}, so that its size is unknown: remove that layer, or "
            "give it its sizes"
        )

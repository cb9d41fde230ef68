"""The outputs of networks: a tensor of logits, an object with `logits`, or a dictionary with `logits`.

Shapes: B batch, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from kdcl_dist.data.samples import Inputs, forward
from kdcl_dist.errors import ModelError

__all__ = ["accessor", "give_logits"]


def give_logits(network: nn.Module, name: str) -> None:
    """Let every call of a network give the tensor of logits; its parameters keep their names.

    A network of TorchScript, which takes no hooks, stays as it is.

    Args:
        network: its calls, also in programs and compiled passes, give the logits from now on, or raise
            ModelError if its output has none.
        name: the network's name in the recipe, for the error message.
    """

    def logits(_: nn.Module, __: Any, output: Any) -> Tensor:
        """The logits (B, C) of an output."""
        found = output["logits"] if _has_entry(output) else getattr(output, "logits", output)
        if not isinstance(found, Tensor):
            raise ModelError(
                f"model {name!r} returns {type(output).__name__} without logits: return logits of shape (B, "
                "classes), an object with the attribute logits, or a dictionary with the key 'logits'"
            )
        return found

    if not isinstance(network, torch.jit.ScriptModule):
        network.register_forward_hook(logits)


def accessor(network: nn.Module, inputs: Inputs) -> str:
    """The Python behind a call of the bare network that gives logits: `["logits"]`, `.logits` or nothing."""
    output = forward(network.forward, inputs)  # without the hook of `give_logits`
    if _has_entry(output):
        return '["logits"]'
    return "" if isinstance(output, Tensor) else ".logits"


def _has_entry(output: object) -> bool:
    return isinstance(output, Mapping) and "logits" in output

"""Transfer to another task: the layers of a trained network under a new head.

The head is the network's last linear layer. In a linear probe only the head learns; the body is in evaluation
mode, so that batch norm keeps its statistics and dropout is off. In fine-tuning all layers learn.
"""

from __future__ import annotations

from torch import nn

from kdcl_dist.errors import ModelError

__all__ = ["freeze_body", "head_of", "train_head"]


def head_of(model: nn.Module, name: str, classes: int) -> str:
    """The name of the last linear layer, as `nn.Module.get_submodule` takes it.

    Args:
        model: the network.
        name: the network's name in the recipe, for the error message.
        classes: number of classes of the data, which the layer's outputs must equal.

    Raises:
        ModelError: there is no linear layer, or the last one has another number of outputs.
    """
    linear = [(path, layer) for path, layer in model.named_modules() if isinstance(layer, nn.Linear)]
    path, layer = linear[-1] if linear else ("", None)
    if layer is None or layer.out_features != classes:
        found = "it has none" if layer is None else f"its last has {layer.out_features} outputs"
        raise ModelError(
            f"model {name!r} cannot be transferred: that needs a last torch.nn.Linear with {classes} "
            f"outputs, one a class ({found})"
        )
    return path


def freeze_body(model: nn.Module, head: str) -> None:
    """Freeze all parameters except the head's."""
    model.requires_grad_(False)
    model.get_submodule(head).requires_grad_(True)


def train_head(model: nn.Module, head: str) -> None:
    """Set training mode for the head alone, while `model.training` is true as well."""
    model.eval()
    model.training = True
    model.get_submodule(head).train()

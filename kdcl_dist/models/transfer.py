"""From one task to another: a network that keeps what it learned, under a new head.

The head is the network's last linear layer. In a linear probe only the head learns; the rest stays as it
is, in evaluation mode, so that batch norm keeps its statistics and dropout is off. In fine-tuning all learns.
"""

from __future__ import annotations

from torch import nn

from kdcl_dist.errors import ModelError

__all__ = ["freeze_body", "head_of", "train_head"]


def head_of(model: nn.Module, name: str, classes: int) -> str:
    """Where the last linear layer is, as `nn.Module.get_submodule` takes it.

    Args:
        model: the network.
        name: how the recipe calls it.
        classes: of the data; as many outputs the layer must have.

    Raises:
        ModelError: the network ends otherwise.
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
    """Let no parameter but the head's learn."""
    model.requires_grad_(False)
    model.get_submodule(head).requires_grad_(True)


def train_head(model: nn.Module, head: str) -> None:
    """Training mode for the head alone; the network as a whole still counts as in training."""
    model.eval()
    model.training = True
    model.get_submodule(head).train()

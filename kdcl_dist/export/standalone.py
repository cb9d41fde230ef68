"""Building a network without this package."""

from __future__ import annotations

import inspect

from kdcl_dist.models import cifar, imagenet, small
from kdcl_dist.models.registry import call_of, construct
from kdcl_dist.version import __version__

__all__ = ["MODULE", "call_of_own", "call_without_package", "module_without_package"]

#: The file beside the weights that builds the network.
MODULE = "model.py"


def call_without_package(model: str, classes: int, channels: int) -> str | None:
    """A Python expression for torchvision's network; None if the model is not exactly such a network."""
    if model not in imagenet.NETWORKS or channels != 3:
        return None
    function, arguments = imagenet.NETWORKS[model]
    more = "".join(f", {name}={value!r}" for name, value in arguments.items())
    return f"torchvision.models.{function}(num_classes={classes}{more})"


def module_without_package(model: str, classes: int, channels: int) -> str | None:
    """The source of a module whose `build()` returns the network; None for a user's network.

    It is the module of this package that defines the network, and imports only torch and torchvision.
    """
    source = next((module for module in (small, cifar, imagenet) if model in module.FACTORIES), None)
    if source is None:
        return None
    return (
        f"# {source.__name__} of kdcl_dist {__version__} (Apache-2.0). build() gives the network.\n"
        f"{inspect.getsource(source)}\n\n"
        "def build() -> nn.Module:\n"
        f'    """The network {model} of the weights beside this file."""\n'
        f'    return FACTORIES["{model}"]({classes}, {channels})\n'
    )


def call_of_own(model: str, classes: int, channels: int) -> tuple[str, str]:
    """Of a user's network, the statement that imports its factory, and the expression that builds it."""
    module, _, name = model.partition(":")
    call = call_of(model, classes, channels)
    if hasattr(construct(model, classes, channels), "_orig_mod"):  # what torch.compile wrapped
        call += "._orig_mod"
    return f"from {module} import {name.partition('.')[0]}", call

"""Building a network without this package."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from kdcl_dist.config.model import Model, library_of
from kdcl_dist.models import cifar, imagenet, small
from kdcl_dist.models.registry import call_of, construct
from kdcl_dist.utils.import_strings import names_object
from kdcl_dist.version import __version__

__all__ = ["CONFIG", "MODULE", "call_of_own", "call_without_package", "module_without_package"]

#: The file beside the weights that builds the network.
MODULE = "model.py"
#: The file beside the weights that describes a network of transformers.
CONFIG = "config.json"


def call_without_package(model: str | Model, classes: int, channels: int | None) -> str | None:
    """A Python expression for another library's network, which begins with the library's name.

    None if the model is not exactly such a network. One of transformers is built from the export's
    `config.json`.
    """
    name, arguments = Model.of(model).name, Model.of(model).arguments
    library, network = library_of(name), name.partition(":")[2]
    if library == "hf":
        config = 'transformers.AutoConfig.from_pretrained(".")'
        task = "Sequence" if channels is None else "Image"
        return f"transformers.AutoModelFor{task}Classification.from_config({config})"
    if library == "timm":
        given = _given({"num_classes": classes, "in_chans": channels} | arguments)
        return f"timm.create_model({network!r}, {given})"
    if library is None and name in imagenet.NETWORKS:
        network, arguments = imagenet.NETWORKS[name]
    elif library is None:
        return None
    return (
        f"torchvision.models.{network}({_given({'num_classes': classes} | arguments)})"
        if channels == 3
        else None
    )


def module_without_package(model: str | Model, classes: int, channels: int | None) -> str | None:
    """The source of a module whose `build()` returns the network; None for a network from elsewhere.

    It is the module of this package that makes the network, and imports only torch and torchvision.
    """
    name, arguments = Model.of(model).name, Model.of(model).arguments
    source = next((module for module in (small, cifar, imagenet) if name in module.FACTORIES), None)
    more = f", {_given(arguments)}" if arguments else ""
    call = f'FACTORIES["{name}"]({classes}, {channels}{more})'
    if library_of(name) == "torchvision":
        source, network = imagenet, name.partition(":")[2]
        call = f"torchvision_network({network!r}, {arguments!r}, {classes}, {channels})"
    if source is None:
        return None
    return (
        f"# {source.__name__} of kdcl_dist {__version__} (Apache-2.0). build() gives the network.\n"
        f"{inspect.getsource(source)}\n\n"
        "def build() -> nn.Module:\n"
        f'    """The network {name} of the weights beside this file."""\n'
        f"    return {call}\n"
    )


def call_of_own(model: str | Model, classes: int, channels: int | None) -> tuple[str, str]:
    """Of a user's network, the statement that imports its factory, and the expression that builds it.

    An object of a call in Python has no place to be imported from: the reader fills in its expression.
    """
    if names_object(text := Model.of(model).name):
        return f"# {text}: the network that train() was given in Python, built here as there", "..."
    module, _, name = text.partition(":")
    call = call_of(model, classes, channels)
    if hasattr(construct(model, classes, channels), "_orig_mod"):  # what torch.compile wrapped
        call += "._orig_mod"
    return f"from {module} import {name.partition('.')[0]}", call


def _given(arguments: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in arguments.items())

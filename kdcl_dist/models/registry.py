"""The registry of networks: from the name in a recipe to a network."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable
from typing import Any

from torch import nn

from kdcl_dist.errors import ModelError, of_user_code
from kdcl_dist.models import cifar, imagenet, small
from kdcl_dist.models.built_in import Usual
from kdcl_dist.models.compilation import uncompiled
from kdcl_dist.utils.import_strings import is_import_string, load_object

__all__ = ["BUILT_IN", "GROUPS", "build", "call_of", "construct", "names"]

Factory = Callable[[int, int], nn.Module]

#: The built-in networks by their usual input; each accepts other sizes and numbers of classes.
GROUPS: dict[Usual, dict[str, Factory]] = {
    Usual((1, 8, 8), 10): small.FACTORIES,
    Usual((3, 32, 32), 100): cifar.FACTORIES,
    Usual((3, 224, 224), 1000): imagenet.FACTORIES,
}
BUILT_IN: dict[str, Factory] = {name: make for group in GROUPS.values() for name, make in group.items()}


def names() -> list[str]:
    """All built-in names, sorted."""
    return sorted(BUILT_IN)


def build(name: str, num_classes: int, in_channels: int = 3) -> nn.Module:
    """A new network that maps images (B, in_channels, H, W) to logits (B, num_classes), not compiled.

    Arguments and errors as `construct`.
    """
    return uncompiled(construct(name, num_classes, in_channels))[0]


def construct(name: str, num_classes: int, in_channels: int) -> nn.Module:
    """A new network as its factory gives it.

    Args:
        name: a built-in name, or an import string `package.module:factory`. A call of a factory has the
            argument `num_classes`, and `in_channels` if the factory has such a parameter.
        num_classes: classes of the data.
        in_channels: channels of the data.

    Raises:
        ModelError: the name is unknown, or the factory fails or returns no `nn.Module`.
    """
    if name in BUILT_IN:
        return BUILT_IN[name](num_classes, in_channels)
    if not is_import_string(name):
        close = difflib.get_close_matches(name, names(), n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise ModelError(
            f"model {name!r} is unknown: {hint}`kdcl models` lists the built-in ones; "
            "your own is given as package.module:factory"
        )
    with of_user_code(ModelError, f"model {name!r} cannot be built"):
        factory = load_object(name)
        module = factory(**_arguments(factory, num_classes, in_channels))
    if not isinstance(module, nn.Module):
        raise ModelError(f"model {name!r} gives {type(module).__name__}, not a torch.nn.Module")
    return module


def call_of(name: str, num_classes: int, in_channels: int) -> str:
    """The call by which `build` calls the factory of an import string, as Python; errors as `load_object`."""
    given = _arguments(load_object(name), num_classes, in_channels).items()
    return f"{name.partition(':')[2]}({', '.join(f'{key}={value}' for key, value in given)})"


def _arguments(factory: Callable[..., Any], num_classes: int, in_channels: int) -> dict[str, int]:
    parameters = inspect.signature(factory).parameters.values()
    takes = any(p.name == "in_channels" or p.kind is p.VAR_KEYWORD for p in parameters)
    return {"num_classes": num_classes} | ({"in_channels": in_channels} if takes else {})

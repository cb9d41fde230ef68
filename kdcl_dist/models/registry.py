"""The registry of networks: from the name in a recipe to a network."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from torch import nn

from kdcl_dist.config.model import Model, is_url, library_of
from kdcl_dist.errors import ModelError, of_user_code
from kdcl_dist.models import cifar, imagenet, libraries, small
from kdcl_dist.models.built_in import Usual
from kdcl_dist.models.compilation import uncompiled
from kdcl_dist.models.outputs import give_logits
from kdcl_dist.utils.import_strings import load_object

__all__ = ["BUILT_IN", "GROUPS", "build", "call_of", "construct", "names", "prepare"]

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


def build(model: str | Model, num_classes: int, in_channels: int | None = 3) -> nn.Module:
    """A new network that maps images (B, in_channels, H, W), or other inputs, to logits (B, num_classes).

    It is not compiled.

    Arguments and errors as `construct`.
    """
    return prepare(model, num_classes, in_channels)[0]


def prepare(model: str | Model, num_classes: int, in_channels: int | None) -> tuple[nn.Module, bool]:
    """The network of `build`, and whether its factory compiled it; arguments and errors as `construct`."""
    network, compiles = uncompiled(construct(model, num_classes, in_channels))
    if Model.of(model).name not in BUILT_IN:
        give_logits(network, str(model))
    return network, compiles


def construct(model: str | Model, num_classes: int, in_channels: int | None) -> nn.Module:
    """A new network as its factory gives it.

    Args:
        model: a built-in name, a library's network such as `timm:resnet18`, or an import string
            `package.module:factory`; with arguments or without. A call of a factory has the arguments
            `num_classes` and `in_channels` if the factory has such parameters.
        num_classes: classes of the data.
        in_channels: channels of the data's images; None: its samples are no images.

    Raises:
        ModelError: the network takes images alone, and the data has none; the name or an argument is unknown,
            or the factory fails or returns no `nn.Module`.
    """
    model = Model.of(model)
    with of_user_code(ModelError, f"model {model!r} cannot be built"):
        factory = _factory(model)
        if in_channels is None:
            _check_takes_samples(model)
        _check_arguments(model, factory)
        module = factory(**_arguments(factory, num_classes, in_channels), **model.arguments)
    if not isinstance(module, nn.Module):
        raise ModelError(f"model {model!r} gives {type(module).__name__}, not a torch.nn.Module")
    return module


def call_of(model: str | Model, num_classes: int, in_channels: int | None) -> str:
    """The call by which `build` calls the factory of an import string, as Python; errors as `load_object`."""
    model = Model.of(model)
    given = _arguments(load_object(model.name), num_classes, in_channels) | model.arguments
    return f"{model.name.partition(':')[2]}({', '.join(f'{key}={value!r}' for key, value in given.items())})"


def _factory(model: Model) -> Callable[..., Any]:
    """What makes the network from the number of classes, that of channels, and the arguments."""
    if is_url(model):
        return partial(_served, model.name)
    if model.name in BUILT_IN:
        return BUILT_IN[model.name]
    if (library := library_of(model.name)) is not None:
        libraries.check_arguments(model.name, model.arguments)
        return partial(libraries.FACTORIES[library], model.name.partition(":")[2])
    if model.import_string is not None:
        found: Callable[..., Any] = load_object(model.name)
        return found
    raise ModelError(
        f"model {model.name!r} is unknown: {_suggestion(model.name, names())}`kdcl models` lists the "
        "built-in ones; your own is given as package.module:factory"
    )


def _served(url: str, num_classes: int) -> nn.Module:
    from kdcl_dist.models.remote.network import ServedNetwork  # few runs need it

    return ServedNetwork(url, num_classes)


def _check_arguments(model: Model, factory: Callable[..., Any]) -> None:
    """See that a factory has the recipe's arguments; one that takes any is left to refuse them itself."""
    parameters = inspect.signature(factory).parameters.values() if model.arguments else ()
    given = [name for name in ("num_classes", "in_channels") if name in model.arguments]
    if given:
        raise ModelError(f"model {model.name!r}: the data gives {given[0]!r}, leave it out")
    parameters = inspect.signature(factory).parameters.values()
    if any(each.kind is each.VAR_KEYWORD for each in parameters):
        return
    known = [each.name for each in parameters if each.name not in ("num_classes", "in_channels")]
    for name in model.arguments:
        if name not in known:
            takes = f"it takes {', '.join(known)}" if known else "it takes no arguments"
            raise ModelError(
                f"model {model.name!r} has no argument {name!r}: {_suggestion(name, known)}{takes}"
            )


def _arguments(factory: Callable[..., Any], num_classes: int, in_channels: int | None) -> dict[str, Any]:
    given = {"num_classes": num_classes}
    parameters = inspect.signature(factory).parameters.values()
    if in_channels is not None:
        given["in_channels"] = in_channels
    if any(each.kind is each.VAR_KEYWORD for each in parameters):
        return given
    return {name: value for name, value in given.items() if name in [each.name for each in parameters]}


def _check_takes_samples(model: Model) -> None:
    """Refuse a network that takes images alone, for samples that are none."""
    library = library_of(model.name)
    if model.name in BUILT_IN or library in ("torchvision", "timm"):
        raise ModelError(
            f"model {model.name!r} takes images, and the data's samples are none: give a factory of your "
            "own, package.module:factory, or a classifier of transformers, hf:FOLDER"
        )


def _suggestion(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {close[0]!r}? " if close else ""

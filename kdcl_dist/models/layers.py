"""The layers of any network in order, from the input to the head, for learning rates that differ by layer."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from kdcl_dist.utils.extras import load_extra

__all__ = ["layers_of"]

LISTS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


def layers_of(network: nn.Module) -> dict[str, int]:
    """The number of each parameter's layer, from 0 at the input; the head has the largest.

    A network with timm's `group_matcher` is grouped by it. The layers of another one are its children in the
    order in which its constructor makes them. In place of a list (`nn.Sequential`, `nn.ModuleList` or
    `nn.ModuleDict` itself), and of a child with a list of blocks somewhere in it, stand its own children, at
    any depth. A block is an item of a list that is no list and has children; it is one layer. What has no
    matrix, such as a norm, belongs to the layer before it, and a parameter outside of all these to the first.
    """
    if callable(matcher := getattr(network, "group_matcher", None)):
        timm = load_extra("timm.models")
        found: dict[str, int] = timm.group_parameters(network, matcher(coarse=False), reverse=True)
        return found
    layer_of: dict[nn.Parameter, int] = {}
    layer = -1
    for part in _parts(network, in_list=False):
        new = [each for each in part.parameters() if each not in layer_of]
        layer += any(each.ndim > 1 for each in new)
        layer_of |= dict.fromkeys(new, max(layer, 0))
    return {name: layer_of.get(each, 0) for name, each in network.named_parameters()}


def _parts(module: nn.Module, in_list: bool) -> Iterator[nn.Module]:
    """The children of a module, or their own in their place."""
    for child in module.children():
        if type(child) in LISTS:
            yield from _parts(child, in_list=True)
        elif not in_list and any(map(_has_blocks, child.modules())):
            yield from _parts(child, in_list=False)
        else:
            yield child


def _has_blocks(module: nn.Module) -> bool:
    """Whether a module is a list with a block in it."""
    return type(module) in LISTS and any(
        type(item) not in LISTS and any(True for _ in item.children()) for item in module.children()
    )

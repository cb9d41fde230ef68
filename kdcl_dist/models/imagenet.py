"""Networks for 224x224 images, from torchvision, with random weights.

The import of torchvision takes seconds, so it happens when a process builds such a network.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

__all__ = ["FACTORIES", "NETWORKS", "torchvision_network"]


def torchvision_network(
    function: str, arguments: dict[str, Any], num_classes: int, in_channels: int
) -> nn.Module:
    """A network of torchvision with random weights, whose first convolution takes `in_channels`.

    Args:
        function: of torchvision.models.
        arguments: of the function, besides the number of classes.
        num_classes, in_channels: of the data.
    """
    from torchvision import models

    network: nn.Module = getattr(models, function)(weights=None, num_classes=num_classes, **arguments)
    if in_channels != 3:
        _replace_first_convolution(network, in_channels)
    return network


def _replace_first_convolution(network: nn.Module, in_channels: int) -> None:
    name, first = next((n, m) for n, m in network.named_modules() if isinstance(m, nn.Conv2d))
    parent_name, _, own_name = name.rpartition(".")
    settings = {key: getattr(first, key) for key in ("kernel_size", "stride", "padding", "dilation")}
    new = nn.Conv2d(in_channels, first.out_channels, bias=first.bias is not None, **settings)
    nn.init.kaiming_normal_(new.weight, mode="fan_out", nonlinearity="relu")
    setattr(network.get_submodule(parent_name), own_name, new)


#: By name, the function of torchvision.models and its arguments besides the number of classes.
NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "resnet18": ("resnet18", {}),
    "resnet34": ("resnet34", {}),
    "resnet50": ("resnet50", {}),
    "resnet101": ("resnet101", {}),
    "mobilenet_v2": ("mobilenet_v2", {}),
    "mobilenet_v2_x0_5": ("mobilenet_v2", {"width_mult": 0.5}),
    "mobilenet_v2_x1_2": ("mobilenet_v2", {"width_mult": 1.2}),
    "shufflenet_v2_x0_5": ("shufflenet_v2_x0_5", {}),
    "shufflenet_v2_x1_0": ("shufflenet_v2_x1_0", {}),
    "shufflenet_v2_x1_5": ("shufflenet_v2_x1_5", {}),
    "shufflenet_v2_x2_0": ("shufflenet_v2_x2_0", {}),
}
FACTORIES: dict[str, Callable[[int, int], nn.Module]] = {
    name: partial(torchvision_network, function, arguments)
    for name, (function, arguments) in NETWORKS.items()
}

"""Networks for 32x32 images: ResNets (He et al., 2016, section 4.2), wide ResNets (Zagoruyko and
Komodakis, 2016) and VGG-16 with batch norm (Simonyan and Zisserman, 2015).

Shapes: B batch, C channels, H W image.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["FACTORIES"]


def _conv(inner: int, outer: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inner, outer, 3, stride=stride, padding=1, bias=False)


class BasicBlock(nn.Module):
    """Two convolutions with a parameter-free shortcut (option A of the paper)."""

    def __init__(self, inner: int, outer: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = _conv(inner, outer, stride), nn.BatchNorm2d(outer)
        self.conv2, self.bn2 = _conv(outer, outer), nn.BatchNorm2d(outer)
        self.stride, self.missing = stride, outer - inner

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """(B, outer, H / stride, W / stride)."""
        out = F.relu(self.bn1(self.conv1(x_BCHW)))
        # The shortcut takes every `stride`-th pixel and adds channels of zeros on both sides.
        short = x_BCHW[:, :, :: self.stride, :: self.stride]
        short = F.pad(short, (0, 0, 0, 0, self.missing // 2, self.missing - self.missing // 2))
        return F.relu(self.bn2(self.conv2(out)) + short)


class CifarResNet(nn.Module):
    """6n + 2 layers in three stages of 16, 32 and 64 channels."""

    def __init__(self, num_classes: int, in_channels: int, depth: int) -> None:
        super().__init__()
        self.conv, self.bn = _conv(in_channels, 16), nn.BatchNorm2d(16)
        blocks, inner = [], 16
        for outer, first_stride in ((16, 1), (32, 2), (64, 2)):
            for number in range((depth - 2) // 6):
                blocks.append(BasicBlock(inner, outer, first_stride if number == 0 else 1))
                inner = outer
        self.blocks = nn.Sequential(*blocks)
        self.classifier = nn.Linear(64, num_classes)
        _kaiming(self)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Logits (B, num_classes)."""
        out = self.blocks(F.relu(self.bn(self.conv(images_BCHW))))
        logits: Tensor = self.classifier(out.mean(dim=(2, 3)))
        return logits


class WideBlock(nn.Module):
    """Pre-activation block; a 1x1 convolution where the shape changes."""

    def __init__(self, inner: int, outer: int, stride: int) -> None:
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(inner), _conv(inner, outer, stride)
        self.bn2, self.conv2 = nn.BatchNorm2d(outer), _conv(outer, outer)
        same = inner == outer and stride == 1
        self.shortcut = None if same else nn.Conv2d(inner, outer, 1, stride=stride, bias=False)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """(B, outer, H / stride, W / stride)."""
        active = F.relu(self.bn1(x_BCHW))
        out = self.conv2(F.relu(self.bn2(self.conv1(active))))
        short_BCHW: Tensor = x_BCHW if self.shortcut is None else self.shortcut(active)
        summed_BCHW: Tensor = short_BCHW + out
        return summed_BCHW


class WideResNet(nn.Module):
    """Three stages of `blocks` wide blocks each, with 16k, 32k and 64k channels for the width k."""

    def __init__(self, num_classes: int, in_channels: int, blocks: int, width: int) -> None:
        super().__init__()
        self.conv = _conv(in_channels, 16)
        layers, inner = [], 16
        for outer, first_stride in ((16 * width, 1), (32 * width, 2), (64 * width, 2)):
            for number in range(blocks):
                layers.append(WideBlock(inner, outer, first_stride if number == 0 else 1))
                inner = outer
        self.blocks = nn.Sequential(*layers)
        self.bn, self.classifier = nn.BatchNorm2d(inner), nn.Linear(inner, num_classes)
        _kaiming(self)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Logits (B, num_classes)."""
        out = F.relu(self.bn(self.blocks(self.conv(images_BCHW))))
        logits: Tensor = self.classifier(out.mean(dim=(2, 3)))
        return logits


class Vgg(nn.Module):
    """Convolutions with batch norm, five max-pools down to 1x1, one linear layer."""

    LAYERS = (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0)

    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for width in self.LAYERS:
            if width == 0:
                layers.append(nn.MaxPool2d(2))
                continue
            layers += [
                nn.Conv2d(in_channels, width, 3, padding=1),
                nn.BatchNorm2d(width),
                nn.ReLU(inplace=True),
            ]
            in_channels = width
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(512, num_classes)
        _kaiming(self)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Logits (B, num_classes); images of at least 32x32."""
        logits: Tensor = self.classifier(self.features(images_BCHW).mean(dim=(2, 3)))
        return logits


def _kaiming(network: nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def _resnet(depth: int, num_classes: int, in_channels: int) -> nn.Module:
    return CifarResNet(num_classes, in_channels, depth)


def _wide(blocks: int, width: int, num_classes: int, in_channels: int) -> nn.Module:
    return WideResNet(num_classes, in_channels, blocks, width)


#: WRN-d-k has (d - 4) / 6 blocks per stage. No such network has the depth 20, although papers report results
#: for WRN-20-8; here that name means 3 blocks per stage, (20 - 2) / 6.
FACTORIES: dict[str, Callable[[int, int], nn.Module]] = {
    **{f"resnet{depth}": partial(_resnet, depth) for depth in (20, 32, 44, 56, 110)},
    "wrn_16_2": partial(_wide, 2, 2),
    "wrn_40_2": partial(_wide, 6, 2),
    "wrn_20_8": partial(_wide, 3, 8),
    "vgg16": Vgg,
}

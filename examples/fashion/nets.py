"""Four networks for images of 28x28 with one channel, 0.05 to 3 million parameters.

The sizes have the proportions of the paper's pairs; the multiply-adds are few, so that hundreds of runs fit
two cores. The two larger networks are residual. On few images of this set small networks are as good as large
ones. So the two smaller ones see a coarser image, as MobileNet's resolution multiplier has it (Howard et al.,
2017), such that they are about as far behind the large one as in the paper.

Shapes: B images, C channels, H W image.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


def _conv(inner: int, outer: int, side: int = 3, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inner, outer, side, stride=stride, padding=side // 2, bias=False)


class Block(nn.Module):
    """Two convolutions and a shortcut (He et al., 2016), a 1x1 convolution where the shape changes."""

    def __init__(self, inner: int, outer: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = _conv(inner, outer, stride=stride), nn.BatchNorm2d(outer)
        self.conv2, self.bn2 = _conv(outer, outer), nn.BatchNorm2d(outer)
        self.shortcut = nn.Identity() if inner == outer else _conv(inner, outer, 1, stride)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """(B, outer, H / stride, W / stride), rounded up."""
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x_BCHW)))))
        return F.relu(out + self.shortcut(x_BCHW))


class Residual(nn.Module):
    """Patches of 4x4 pixels, then three stages of residual blocks on 7x7, 4x4 and 2x2."""

    def __init__(self, num_classes: int, in_channels: int, widths: tuple[int, int, int]) -> None:
        super().__init__()
        first, second, third = widths
        self.features = nn.Sequential(
            nn.Conv2d(in_channels, first, 4, stride=4, bias=False),
            nn.BatchNorm2d(first),
            nn.ReLU(),
            Block(first, first, 1),
            Block(first, second, 2),
            Block(second, third, 2),
            Block(third, third, 1),
        )
        self.classifier = nn.Linear(third, num_classes)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Logits (B, num_classes)."""
        logits: Tensor = self.classifier(self.features(images_BCHW).mean(dim=(2, 3)))
        return logits


class Coarse(nn.Module):
    """Four 3x3 convolutions with batch norm, on an image that is averaged to a few pixels.

    `sides` are its rows and columns, `narrowing` the stride of the third convolution.
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int,
        sides: tuple[int, int],
        widths: tuple[int, ...],
        narrowing: int,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.AdaptiveAvgPool2d(sides)]
        for place, width in enumerate(widths):
            stride = narrowing if place == 2 else 1
            layers += [_conv(in_channels, width, stride=stride), nn.BatchNorm2d(width), nn.ReLU()]
            in_channels = width
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(in_channels, num_classes)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Logits (B, num_classes)."""
        logits: Tensor = self.classifier(self.features(images_BCHW).mean(dim=(2, 3)))
        return logits


def large(num_classes: int, in_channels: int) -> nn.Module:
    """3 million parameters."""
    return Residual(num_classes, in_channels, (64, 128, 288))


def medium(num_classes: int, in_channels: int) -> nn.Module:
    """1 million parameters."""
    return Residual(num_classes, in_channels, (48, 96, 160))


def small(num_classes: int, in_channels: int) -> nn.Module:
    """0.3 million parameters, on 4x4 pixels."""
    return Coarse(num_classes, in_channels, (4, 4), (32, 64, 128, 192), narrowing=2)


def nano(num_classes: int, in_channels: int) -> nn.Module:
    """0.05 million parameters, on 2x3 pixels."""
    return Coarse(num_classes, in_channels, (2, 3), (16, 32, 64, 48), narrowing=1)

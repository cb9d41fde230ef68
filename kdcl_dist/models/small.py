"""Small networks for images of any size from 8x8: for the quick start, tests and experiments on a CPU.

Shapes: B batch, H W image.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor, nn

__all__ = ["FACTORIES"]


class Mlp(nn.Module):
    """Two hidden layers over the image pooled to 8x8."""

    def __init__(self, num_classes: int, in_channels: int, hidden: int = 64) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.AdaptiveAvgPool2d(8),
            nn.Flatten(),
            nn.Linear(64 * in_channels, hidden),
            nn.ReLU(),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Linear(hidden, num_classes),
        )

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Logits (B, num_classes)."""
        logits: Tensor = self.layers(images_BCHW)
        return logits


class Cnn(nn.Module):
    """Stages of 3x3 convolution, batch norm and ReLU; each but the first halves the image."""

    def __init__(self, num_classes: int, in_channels: int, widths: tuple[int, ...], depth: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for stage, width in enumerate(widths):
            for block in range(depth):
                stride = 2 if stage > 0 and block == 0 else 1
                layers += [
                    nn.Conv2d(in_channels, width, 3, stride=stride, padding=1, bias=False),
                    nn.BatchNorm2d(width),
                    nn.ReLU(inplace=True),
                ]
                in_channels = width
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(in_channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Logits (B, num_classes)."""
        logits: Tensor = self.classifier(self.pool(self.features(images_BCHW)).flatten(1))
        return logits


def _cnn(widths: tuple[int, ...], depth: int, num_classes: int, in_channels: int) -> nn.Module:
    return Cnn(num_classes, in_channels, widths, depth)


FACTORIES: dict[str, Callable[[int, int], nn.Module]] = {
    "mlp": Mlp,
    "cnn_small": partial(_cnn, (16, 32), 1),
    "cnn_medium": partial(_cnn, (24, 48), 2),
    "cnn_large": partial(_cnn, (48, 96), 3),
}

"""A data set, a network and a transform of your own; `recipe.yaml` beside this file names them.

Shapes: N samples, C channels, H W image, B batch.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

CLASSES = ("disc", "square", "triangle", "cross")
SIDE = 16


class Shapes:
    """Drawings of four kinds, light on dark noise, each of its own size and position; 1 x 16 x 16.

    Every process draws the same: a sample is a function of the seed and its number.
    """

    classes = CLASSES
    channels = 1
    mean = (0.3,)
    std = (0.23,)

    def __init__(self, count: int, seed: int) -> None:
        self.labels = np.arange(count, dtype=np.int64) % len(CLASSES)
        self.seed = seed

    def __len__(self) -> int:
        return len(self.labels)

    def image(self, index: int) -> Tensor:
        """One drawing, uint8 (1, SIDE, SIDE)."""
        rng = np.random.default_rng((self.seed, index))
        radius = rng.uniform(3, 6)
        row, column = rng.uniform(radius, SIDE - radius, size=2)
        y_HW, x_HW = np.mgrid[:SIDE, :SIDE] + 0.5
        inside_HW = _inside(CLASSES[self.labels[index]], (y_HW - row) / radius, (x_HW - column) / radius)
        pixels_HW = 130 * inside_HW + rng.uniform(0, 100, (SIDE, SIDE))
        return torch.from_numpy(pixels_HW.astype(np.uint8))[None]


def _inside(kind: str, y_HW: np.ndarray, x_HW: np.ndarray) -> np.ndarray:
    """Which pixels a shape covers, in coordinates in which it reaches from -1 to 1."""
    if kind == "disc":
        return y_HW**2 + x_HW**2 < 1
    if kind == "square":
        return np.maximum(abs(y_HW), abs(x_HW)) < 0.8
    if kind == "triangle":
        return (abs(y_HW) < 1) & (abs(x_HW) < (y_HW + 1) / 2)
    return (np.minimum(abs(y_HW), abs(x_HW)) < 0.3) & (np.maximum(abs(y_HW), abs(x_HW)) < 1)


def train() -> Shapes:
    """The training set, as data.train names it."""
    return Shapes(2000, seed=1)


def test() -> Shapes:
    """The test set, as data.test names it."""
    return Shapes(400, seed=2)


class Patches(nn.Module):
    """Classifies 4x4 patches with their surroundings; a class's logit is the largest of all patches."""

    def __init__(self, num_classes: int, in_channels: int, width: int = 32) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(in_channels, width, 7, stride=2, padding=3),
            nn.GELU(),
            nn.Conv2d(width, 2 * width, 5, stride=2, padding=2),
            nn.GELU(),
            nn.Conv2d(2 * width, num_classes, 3, padding=1),
        )

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Logits (B, num_classes)."""
        logits: Tensor = self.layers(images_BCHW).amax(dim=(2, 3))
        return logits


class Shade:
    """Darkens the image towards one side, chosen at random.

    Transforms may draw from torch, numpy or random: all three are seeded for each sample and epoch.
    """

    def __init__(self, strength: float) -> None:
        self.strength = strength

    def __call__(self, image_CHW: Tensor) -> Tensor:
        """The image as floating point in [0, 1]."""
        light_W = 1 - self.strength * torch.linspace(0, 1, image_CHW.shape[2])
        if torch.rand(()) < 0.5:
            light_W = light_W.flip(0)
        return image_CHW / 255 * light_W

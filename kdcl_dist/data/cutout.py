"""Cutout (DeVries and Taylor, 2017): a square of the image is blanked.

torchvision's RandomErasing differs: its rectangle always lies inside the image and takes a share of its area.

Shapes: C channels, H W image.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["Cutout"]


class Cutout:
    """Blanks one square whose centre is uniform over the pixels, so that it may hang over the border.

    The paper blanks normalised images with 0, which is the data set's mean. Views are normalised after
    their transforms, so this transform fills in the mean. The mean is seldom a whole number of 0..255:
    uint8 images become floating point in [0, 1] first. Normalisation then gives exact zeros in the square,
    and the same values as without this transform elsewhere.

    Args:
        mean_C: mean of each channel of the data set, pixels in [0, 1]; `Transforms` adds it, a recipe
            does not give it.
        size: side of the square in pixels; the paper's are 16 for CIFAR-10 and 8 for CIFAR-100. A square of
            even size has no middle pixel: it reaches size / 2 before the centre and size / 2 - 1 after it.

    Raises:
        ValueError: size is not a whole number of at least 1.
    """

    def __init__(self, mean_C: Sequence[float], size: int) -> None:
        if not isinstance(size, int) or isinstance(size, bool) or size < 1:
            raise ValueError(f"size must be a whole number of pixels, at least 1 (got {size!r})")
        self.mean_C11, self.size = torch.tensor(mean_C, dtype=torch.float32)[:, None, None], size

    def __call__(self, image_CHW: Tensor) -> Tensor:
        """The image as float32 in [0, 1] with a square blanked; draws from torch's global generator."""
        height, width = image_CHW.shape[-2:]
        row, column = (int(torch.randint(side, ())) for side in (height, width))
        out_CHW = image_CHW.float().div_(255) if image_CHW.dtype == torch.uint8 else image_CHW.float().clone()
        out_CHW[:, self._reach(row), self._reach(column)] = self.mean_C11
        return out_CHW

    def _reach(self, centre: int) -> slice:
        start = centre - self.size // 2
        return slice(max(0, start), max(0, start + self.size))

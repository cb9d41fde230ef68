"""Padded crops and flips of raw images, straight from the mapped file into the batch.

These are the usual views of CIFAR. Pixels and random numbers equal torchvision's. Torchvision's overhead for
each image is saved: it takes far longer than copying 3,072 bytes of pixels.

Shapes: B batch, C channels, H W image, h w view.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from kdcl_dist.data.view_size import MAX_PIXELS

__all__ = ["CropFlip", "is_of_torchvision"]

Pixels = npt.NDArray[np.uint8]


class CropFlip:
    """RandomCrop with zeros as padding, then RandomHorizontalFlip; either or both may be missing.

    Args:
        crop, flip: the transforms that this one replaces.
        shape: (C, H, W) of every image.
    """

    def __init__(self, crop: Any | None, flip: Any | None, shape: tuple[int, int, int]) -> None:
        channels, image_height, image_width = shape
        padding: Sequence[int] = (crop.padding if crop else None) or (0, 0, 0, 0)
        self.pad_left, right, self.pad_top, bottom = padding
        height, width = crop.size if crop else shape[1:]
        self.shape = channels, height, width
        self.rows = image_height + self.pad_top + bottom - height + 1
        self.columns = image_width + self.pad_left + right - width + 1
        self.flip_p = flip.p if flip else None
        self.generator = torch.Generator()

    @classmethod
    def of(cls, calls: Sequence[Callable[..., Any]], shape: tuple[int, int, int]) -> CropFlip | None:
        """The CropFlip that gives the same views as these transforms, or None where there is none."""
        left: list[Any] = list(calls)
        crop = left.pop(0) if left and _is_zero_padded_crop(left[0]) else None
        flip = left.pop(0) if left and is_of_torchvision(left[0], "RandomHorizontalFlip") else None
        if left:
            return None
        found = cls(crop, flip, shape)
        usable = found.rows > 0 and found.columns > 0 and math.prod(found.shape[1:]) <= MAX_PIXELS
        return found if usable else None

    def __call__(self, images: Sequence[Pixels], seeds: Sequence[int]) -> Tensor:
        """The views, uint8 (B, C, h, w), of B images (C, H, W)."""
        out_BChw = np.zeros((len(images), *self.shape), np.uint8)
        for image_CHW, view_Chw, seed in zip(images, out_BChw, seeds, strict=True):
            top, left, flips = self._draw(seed)
            self._copy_crop(image_CHW, view_Chw[..., ::-1] if flips else view_Chw, top, left)
        return torch.from_numpy(out_BChw)

    def _draw(self, seed: int) -> tuple[int, int, bool]:
        """Corner and flip, drawn in torchvision's order; a corner with one possible value takes no draw."""
        generator = self.generator.manual_seed(seed)
        top = int(torch.randint(self.rows, (), generator=generator)) if self.rows > 1 else 0
        left = int(torch.randint(self.columns, (), generator=generator)) if self.columns > 1 else 0
        return top, left, self.flip_p is not None and float(torch.rand((), generator=generator)) < self.flip_p

    def _copy_crop(self, image_CHW: Pixels, view_Chw: Pixels, top: int, left: int) -> None:
        """Copy what a crop shows of the image; (top, left) is the crop's corner in the padded image."""
        above, y = max(0, self.pad_top - top), max(0, top - self.pad_top)
        before, x = max(0, self.pad_left - left), max(0, left - self.pad_left)
        height, width = max(0, self.shape[1] - above), max(0, self.shape[2] - before)
        seen_Chw = image_CHW[:, y : y + height, x : x + width]
        view_Chw[:, above : above + seen_Chw.shape[1], before : before + seen_Chw.shape[2]] = seen_Chw


def _is_zero_padded_crop(call: Any) -> bool:
    """Whether a transform is a RandomCrop that pads with zeros, by the same amount every time."""
    return (
        is_of_torchvision(call, "RandomCrop")
        and call.padding_mode == "constant"
        and call.fill == 0
        and not call.pad_if_needed
    )


def is_of_torchvision(call: Any, *names: str) -> bool:
    """Whether a transform is torchvision's and has one of these names; does not import torchvision."""
    return type(call).__name__ in names and type(call).__module__.startswith("torchvision.transforms.v2.")

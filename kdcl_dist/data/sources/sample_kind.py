"""What a data set's `x` is: an image, or another sample. The rule is here alone, and `RULE` says it.

Shapes: C channels, H W image.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from kdcl_dist.data.decode import has_colour, pixels
from kdcl_dist.data.samples import Sample

__all__ = ["RULE", "as_sample", "channels_of", "why_no_image"]

RULE = (
    "images are PIL images, and tensors of 1 or 3 channels, height, width, of uint8 or of floating-point "
    "numbers in [0, 1]; all else is a sample as it is, normalised by data.normalise only"
)


def as_sample(x: Any, channels: int | None = None) -> Sample:
    """What a data set gives as the tensors that a network takes; a PIL image becomes uint8 (C, H, W).

    Args:
        x: a PIL image, a tensor, an array, a number, or a tuple, list or dict of such.
        channels: what PIL images become; None: 3 for those with colours, else 1.

    Raises:
        ValueError: it is something else; one line of text.
    """
    if isinstance(x, Image.Image):
        return (
            torch.from_numpy(pixels(x, channels or (3 if has_colour(x) else 1))).permute(2, 0, 1).contiguous()
        )
    if isinstance(x, (tuple, list)):
        return tuple(_tensor(part, f"part {position}") for position, part in enumerate(x))
    if isinstance(x, Mapping):
        return {str(name): _tensor(part, repr(name)) for name, part in x.items()}
    return _tensor(x, "x")


def why_no_image(sample: Sample) -> str:
    """Why a sample is no image; empty if it is one."""
    if not isinstance(sample, Tensor):
        return "a sample has several tensors"
    shape = tuple(sample.shape)
    if len(shape) != 3 or shape[0] not in (1, 3) or not sample.numel():
        return f"a sample has the shape {shape}"
    if sample.dtype == torch.uint8:
        return ""
    if not sample.dtype.is_floating_point:
        return f"a sample is {sample.dtype}"
    low, high = float(sample.min()), float(sample.max())
    return "" if low >= 0 and high <= 1 else f"a sample has numbers from {low:g} to {high:g}"


def channels_of(sample: Sample) -> int:
    """The channels of an image."""
    assert isinstance(sample, Tensor)
    return sample.shape[0]


def _tensor(x: Any, what: str) -> Tensor:
    if isinstance(x, Tensor):
        return x
    if isinstance(x, (np.ndarray, np.generic, int, float)) and np.asarray(x).dtype.kind in "biuf":
        return torch.as_tensor(np.array(x, np.float32) if isinstance(x, float) else np.array(x))
    raise ValueError(
        f"{what} is a {type(x).__name__}, not a PIL image, a tensor, an array, or a tuple or dict of such: "
        "give the data set a transform"
    )

"""Pixels of a JPEG or PNG image.

Shapes: H W image, C channels.
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from kdcl_dist.errors import one_line

__all__ = ["decode"]

#: The only decoders of Pillow that read a data set's bytes.
FORMATS = ("JPEG", "PNG")
WHITE_16_BIT = 65535


def decode(data: Any, channels: int) -> npt.NDArray[np.uint8]:
    """The whole image as uint8 (H, W, C), from any stored colour mode; transparency is dropped.

    Args:
        data: the file's bytes (any buffer).
        channels: 1 for grey, 3 for red, green, blue.

    Raises:
        ValueError: the data is no JPEG or PNG, or is damaged, truncated or too large; one line of text.
    """
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            pixels = np.array(_eight_bit(image).convert("L" if channels == 1 else "RGB"))
    except Exception as error:  # decoders raise many types of exception on damaged data
        raise ValueError(_reason(error)) from error
    return pixels.reshape(*pixels.shape[:2], channels)


def _eight_bit(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit grey: convert() would clip it at 255 instead of scaling
        grey_HW = np.asarray(image).astype(np.uint32)
        return Image.fromarray(((grey_HW * 255 + WHITE_16_BIT // 2) // WHITE_16_BIT).astype(np.uint8))
    if image.mode == "P" and "transparency" in image.info:
        return image.convert("RGBA")  # for any other mode Pillow warns
    return image


def _reason(error: Exception) -> str:
    if type(error).__name__ == "UnidentifiedImageError":  # its message names an object in memory
        return "not a JPEG or PNG image"
    return one_line(error)

"""A look at the first images of a user's data: what would train nonsense is refused before anything starts.

Shapes: B batch, C channels, H W image.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdcl_dist.errors import DataError, of_user_code

__all__ = ["check_images", "check_views"]

#: Images that are looked at, evenly spaced.
COUNT = 8
#: Rounding that pixels of [0, 1] may have.
ROUNDING = 1e-3
#: Pixels above this are none of [0, 1], nor normalised ones: a transform has made floats of 0..255.
LARGEST = 20.0


def check_images(where: str, dataset: Any) -> None:
    """See that images of a user's own data set are what the protocol asks for.

    Args:
        where: the data set, for the message.
        dataset: an `ImageDataset`.

    Raises:
        DataError: an image cannot be made, is no tensor, has its channels last, or pixels of another range.
    """
    for index in np.unique(np.linspace(0, len(dataset) - 1, COUNT).astype(int)).tolist():
        with of_user_code(DataError, f"{where}: image({index}) fails"):
            image = dataset.image(index)
        if not isinstance(image, Tensor):
            raise DataError(f"{where}: image({index}) gives a {type(image).__name__}, not a torch.Tensor")
        _check_order(f"{where}: image({index})", tuple(image.shape), dataset.channels)
        low, high = _range(image)
        if image.dtype != torch.uint8 and not (low >= -ROUNDING and high <= 1 + ROUNDING):
            raise DataError(
                f"{where}: image({index}) is {image.dtype} with pixels from {low:g} to {high:g}: give uint8 "
                "in 0..255, or floating point in [0, 1]"
            )


def check_views(field: str, views_BCHW: Tensor, channels: int, student: str | None = None) -> None:
    """See that views, before they are normalised, have the data's channels and pixels of a possible range.

    Args:
        field: of the recipe, whose transforms made the views.
        views_BCHW: the views.
        channels: of the data.
        student: whose views they are; None: all students'.

    Raises:
        DataError: they have not.
    """
    shape = tuple(views_BCHW.shape[1:])
    _check_order(field, shape, channels, student)
    if len(shape) != 3 or shape[0] != channels:
        raise DataError(
            f"{field} gives images of shape {shape} where the data has {channels} channels", student=student
        )
    if not bool(torch.isfinite(views_BCHW).all()):
        raise DataError(f"{field} gives images with NaN or infinite pixels", student=student)
    low, high = _range(views_BCHW)
    if views_BCHW.dtype != torch.uint8 and max(-low, high) > LARGEST:
        raise DataError(
            f"{field} gives {views_BCHW.dtype} images with pixels from {low:g} to {high:g}: give uint8 in "
            "0..255, or floating point in [0, 1] (ToDtype needs scale: true)",
            student=student,
        )


def _check_order(where: str, shape: tuple[int, ...], channels: int, student: str | None = None) -> None:
    if len(shape) == 3 and shape[0] != channels and shape[-1] == channels:
        raise DataError(
            f"{where} has shape {shape}, height, width, channels: it must be channels, height, width "
            "(image.permute(2, 0, 1))",
            student=student,
        )


def _range(images: Tensor) -> tuple[float, float]:
    """The smallest and the largest pixel; both 0 if there is none."""
    return (float(images.min()), float(images.max())) if images.numel() else (0.0, 0.0)

"""Mean and deviation of raw pixels from exact sums.

Shapes: N images, C channels, H W image, D = C * H * W.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["mean_and_std", "pixel_sums"]

#: Images summed at a time: few enough for the caches, and for 32-bit sums of squared pixels.
SUM_ROWS = 64


def pixel_sums(images_ND: npt.NDArray[np.uint8], channels: int) -> list[list[int]]:
    """Sums of pixels and of squared pixels, each by channel: 2 lists of C numbers."""
    first_D, second_D = (np.zeros(images_ND.shape[1], np.uint64) for _ in range(2))
    for start in range(0, len(images_ND), SUM_ROWS):
        rows = images_ND[start : start + SUM_ROWS]
        first_D += rows.sum(0, dtype=np.uint32)
        second_D += np.multiply(rows, rows, dtype=np.uint16).sum(0, dtype=np.uint32)
    return [sums_D.reshape(channels, -1).sum(1).tolist() for sums_D in (first_D, second_D)]


def mean_and_std(sums_2C: npt.NDArray[np.int64], pixels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of each channel, pixels in [0, 1].

    Args:
        sums_2C: the total of `pixel_sums`.
        pixels: number of pixels of a channel in all images.
    """
    first_C, second_C = sums_2C / pixels
    std_C = np.sqrt(np.maximum(second_C - first_C**2, 0))
    std_C[std_C == 0] = 255  # of a constant channel, whose pixels then become 0
    return tuple((first_C / 255).tolist()), tuple((std_C / 255).tolist())

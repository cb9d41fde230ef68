"""What a column of images has in common: channels, mean and deviation."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from kdcl_dist.data.decode import is_grey
from kdcl_dist.data.importers.check import Item, Rejected, accept, moments
from kdcl_dist.data.importers.pixel_sums import mean_and_std
from kdcl_dist.errors import DataError

__all__ = ["ImageFacts"]

#: Channels in which images are looked at; those of a grey one are equal.
COLOUR = 3


@dataclass
class ImageFacts:
    """Gathers what images have in common.

    Attributes:
        grey: whether all are grey so far.
        pixels: how many a channel has.
        sums: of pixels and of squared pixels, by channel.
    """

    grey: bool = True
    pixels: int = 0
    sums: list[list[int]] = field(default_factory=lambda: [[0] * COLOUR, [0] * COLOUR])

    def add(self, data: bytes, where: str) -> None:
        """Decode one image; `DataError` if that fails."""
        item = Item(0, where, data, len(data))
        found = moments(item, COLOUR)
        if found is None:
            rejected = accept(item, COLOUR)
            reason = rejected.reason if isinstance(rejected, Rejected) else "unreadable"
            raise DataError(
                f"{where}: {reason}; `kdcl data import table` leaves such images out, and lists them"
            )
        self.grey = self.grey and is_grey(data)
        self.pixels += found[0]
        self.sums = [
            [a + b for a, b in zip(*pair, strict=True)] for pair in zip(self.sums, found[1:], strict=True)
        ]

    @property
    def channels(self) -> int:
        """1 if all images are grey, else 3."""
        return 1 if self.grey else COLOUR

    @property
    def mean_and_std(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and deviation of each channel, pixels in [0, 1]."""
        return mean_and_std(np.array(self.sums)[:, : self.channels], self.pixels)

"""The checksum of a message: with it the sum of the 64-bit words is 0, until a bit of one is flipped.

TCP has a checksum of its own for each packet. This one also covers the memory of both hosts, from the moment
at which a message is sent to the moment at which it is read.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

from kdcl_dist.exchange.message import Message

__all__ = ["is_intact", "write_checksum"]


def write_checksum(message: Message, part: Tensor) -> None:
    """Write the checksum of a message.

    Args:
        message: whose header takes the checksum.
        part: of its buffer that is sent, uint8; of a size that is a multiple of 8.
    """
    message.header["checksum"] = 0
    message.header["checksum"] = -_sum(part)


def is_intact(part: Tensor) -> bool:
    """Whether the part of a message that was sent fits its checksum: with one bit flipped it does not."""
    return bool(_sum(part) == 0)


def _sum(part: Tensor) -> np.int64:
    """The sum of the words modulo 2**64."""
    return part.numpy().view(np.int64).sum()  # type: ignore[no-any-return]

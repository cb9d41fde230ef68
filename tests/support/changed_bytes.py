"""Files with some bytes changed, for fuzzing in a process of its own."""

from __future__ import annotations

import random


def changed(whole: bytes, draw: random.Random) -> bytearray:
    """A copy with some bytes or numbers changed; one in twenty is also cut."""
    data = bytearray(whole)
    for _ in range(draw.choice((1, 1, 2, 8))):
        place = draw.randrange(len(data))
        width = draw.choice((1, 1, 4, 8))
        value = draw.choice((0, 1, 255, 2**31 - 1, 2**63 - 1, draw.getrandbits(64)))
        data[place : place + width] = (value % 256**width).to_bytes(width, "little")
    if draw.random() < 0.05:
        del data[draw.randrange(len(data)) :]
    return data

"""Decode damaged JPEGs with and without simplejpeg: the same pixels or the same error, else exit code 1.

    python damaged_jpegs.py COUNT

Prints how many files were decoded, and how many refused.
"""

from __future__ import annotations

import random
import sys

import numpy as np
from importing import jpegs

from kdcl_dist.data import decode as decoding


def damaged(data: bytes, draw: random.Random) -> bytes:
    """The file with one to three changes: bytes set, cut out, inserted or repeated, or the end cut off."""
    found = bytearray(data)
    for _ in range(draw.randint(1, 3)):
        place, other = draw.randrange(len(found)), draw.randrange(len(found))
        match draw.randrange(6):
            case 0 | 1:
                found[place] = draw.randrange(256)
            case 2:
                found[place] = 0xFF
            case 3:
                del found[place : place + draw.randint(1, 40)]
            case 4:
                found[place:place] = found[other : other + draw.randint(1, 100)]
            case 5:
                del found[max(2, place) :]
    return bytes(found)


def outcome(data: bytes, channels: int, library: object) -> np.ndarray | str:
    """The pixels, or the error's text."""
    decoding.simplejpeg = library  # type: ignore[assignment]
    try:
        return decoding.decode(data, channels)
    except ValueError as error:
        return str(error)


def main() -> None:
    """Compare."""
    draw, library, files = random.Random(0), decoding.simplejpeg, jpegs()
    assert library is not None
    refused, count = 0, int(sys.argv[1])
    for _ in range(count):
        data, channels = damaged(draw.choice(files), draw), draw.choice((1, 3))
        found, wanted = outcome(data, channels, library), outcome(data, channels, None)
        if not np.array_equal(found, wanted):
            sys.exit(f"{data.hex()} differs: {found} and {wanted}")
        refused += isinstance(wanted, str)
    print(count - refused, refused)


if __name__ == "__main__":
    main()

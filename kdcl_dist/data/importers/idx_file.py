"""Files of the IDX format, in which MNIST is published: a header with the sizes, then plain bytes.

The header: two zero bytes, the type (8: uint8), the number of dimensions, and a big-endian uint32 for each
dimension. Reference: Y. LeCun, C. Cortes, C. Burges, The MNIST database, "file formats".

Shapes: N rows, B rows of a batch, D bytes of a row.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from kdcl_dist.data.decode import MAX_PIXELS
from kdcl_dist.data.importers.archive import Unpacked, open_unpacked, reason
from kdcl_dist.errors import DataError

__all__ = ["IdxFile"]

UINT8 = 8
#: Bounds of a batch.
BATCH_ROWS, BATCH_BYTES = 1024, 16 << 20


class IdxFile:
    """A file of unsigned bytes, plain or packed by gzip, that may come from anyone; its header is read.

    Args:
        path: the file.
        dimensions: number of dimensions that it must have.

    Attributes:
        shape: its dimensions, each above 0.

    Raises:
        DataError: it is missing, no regular file, no IDX file of so many dimensions, or has another size than
            its header says; of a packed one, a size is refused that it could hardly unpack to.
    """

    def __init__(self, path: Path, dimensions: int) -> None:
        self.path, self.dimensions = path, dimensions
        with self._content() as (stream, limit):
            self.shape = self._header(stream, limit)

    def batches(self) -> Iterator[npt.NDArray[np.uint8]]:
        """All rows as arrays (B, D), from the file's beginning; holds one batch at a time.

        Raises:
            DataError: the file is damaged, or holds fewer or more bytes than its header says.
        """
        count, width = self.shape[0], math.prod(self.shape[1:])
        rows = max(1, min(BATCH_ROWS, BATCH_BYTES // width))
        with self._content() as (stream, limit):
            if self._header(stream, limit) != self.shape:
                raise ValueError("it changed during the import")
            for start in range(0, count, rows):
                batch_rows = min(rows, count - start)
                data = stream.read(batch_rows * width)
                if len(data) < batch_rows * width:
                    raise ValueError(f"it ends within row {start + len(data) // width} of {count:,}")
                yield np.frombuffer(data, np.uint8).reshape(batch_rows, width)
            if stream.read(1):  # at the end of a packed file, this compares the checksum
                raise ValueError(f"it goes on behind the {count:,} rows of its header")

    def _header(self, stream: BinaryIO | Unpacked, limit: int) -> tuple[int, ...]:
        """The dimensions in the header; `ValueError` if they are not those of an IDX file of this size."""
        start = struct.Struct(f">HBB{self.dimensions}I")
        header = stream.read(start.size)
        magic = bytes((0, 0, UINT8, self.dimensions))
        if len(header) < start.size or header[:4] != magic:
            raise ValueError(f"it must begin with the bytes {magic.hex(' ')} (found {header[:4].hex(' ')})")
        shape = start.unpack(header)[3:]
        size = start.size + math.prod(shape)
        if not all(shape) or math.prod(shape[1:]) > MAX_PIXELS:
            raise ValueError(f"its header says {_by(shape)}")
        packed = isinstance(stream, Unpacked)
        if size > limit or (not packed and size != limit):
            remedy = " when it is unpacked; if it is sound, unpack it with gunzip" if packed else ""
            raise ValueError(f"its header says {_by(shape)}: {size:,} bytes; it may have {limit:,}{remedy}")
        return shape

    @contextmanager
    def _content(self) -> Iterator[tuple[BinaryIO | Unpacked, int]]:
        """The unpacked content, and its number of bytes; of a packed file, the most that it may unpack to."""
        try:
            with open_unpacked(self.path) as opened:
                yield opened
        except (OSError, EOFError, zlib.error, ValueError) as error:
            raise DataError(f"{self.path}: not a whole IDX file: {reason(error)}") from error


def _by(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))

"""Members of a tar file that may come from anyone: in order, in bounded memory, none written to disk."""

from __future__ import annotations

import tarfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

from kdcl_dist.data.importers.archive import BLOCK_BYTES, Unpacked, open_unpacked, reason
from kdcl_dist.errors import DataError

__all__ = ["tar_members"]

#: Bytes of the headers of one member, long names and extended headers included.
HEADER_BYTES = 100_000
#: What `tarfile` and `gzip` raise on files that lie.
ERRORS = (tarfile.TarError, OSError, EOFError, zlib.error, ValueError, RecursionError, OverflowError)


def tar_members(
    path: Path, wanted: Callable[[tarfile.TarInfo], bool]
) -> Iterator[tuple[tarfile.TarInfo, bytes | None]]:
    """All members of a tar file, plain or packed by gzip, with the bytes of those that are wanted.

    Args:
        path: the file.
        wanted: whether the content of a member is read; it must bound the size. Members that are no plain
            files have none.

    Raises:
        DataError: it is no tar file, is damaged, cut off or no regular file, unpacks to far more than its
            size, or goes on behind its end.
    """
    try:
        with open_unpacked(path) as (content, limit):
            headers, end = _Headers(content), 0
            with tarfile.open(fileobj=cast("BinaryIO", headers), mode="r:") as opened:
                archive: Any = opened
                while (member := archive.next()) is not None:
                    end = _checked_end(archive.offset, end, limit)
                    archive.members.clear()  # it would keep them all
                    archive.pax_headers.clear()
                    plain = member.isreg() and not member.issparse()
                    yield member, content.read(member.size) if plain and wanted(member) else None
                    headers.left = HEADER_BYTES
            _check_rest(content, headers.last)
    except ERRORS as error:
        raise DataError(f"{path}: not a tar file, or a damaged one: {reason(error)}") from error


class _Headers:
    """A file from which `tarfile` reads headers: `ValueError` once those of a member are large.

    Attributes:
        left: bytes that may still be read.
        last: what was read last.
    """

    def __init__(self, content: BinaryIO | Unpacked) -> None:
        self.content, self.left, self.last = content, HEADER_BYTES, b""
        self.seek, self.tell = content.seek, content.tell

    def read(self, size: int) -> bytes:
        """The next bytes."""
        self.left -= size
        if self.left < 0:
            raise ValueError(f"the headers of a member are of more than {HEADER_BYTES:,} bytes")
        self.last = self.content.read(size)
        return self.last


def _checked_end(end: int, before: int, limit: int) -> int:
    """Where a member ends, if that is behind the one before it and within the file."""
    if not before < end:
        raise ValueError(f"the member at byte {before:,} is of a negative size")
    if end > limit:
        raise ValueError(f"the member at byte {before:,} would end at {end:,}; the file may have {limit:,}")
    return end


def _check_rest(content: BinaryIO | Unpacked, last: bytes) -> None:
    """Check that `last`, where `tarfile` stopped, is the end mark, and that only padding follows."""
    if len(last) < tarfile.BLOCKSIZE:
        raise ValueError("it is cut off: its end mark is missing")
    if any(last):
        raise ValueError(f"no header before byte {content.tell():,}")
    while block := content.read(BLOCK_BYTES):
        if block.count(0) < len(block):
            raise ValueError(f"it goes on behind its end mark, before byte {content.tell():,}")

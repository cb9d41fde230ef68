"""Reading archives that may come from anyone: files packed by gzip, and the members of a tar.gz."""

from __future__ import annotations

import gzip
import hashlib
import os
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from kdcl_dist.errors import DataError, one_line
from kdcl_dist.utils.files import open_regular, read_regular

__all__ = [
    "BLOCK_BYTES",
    "Unpacked",
    "check_md5",
    "members_of_archive",
    "open_unpacked",
    "read_checked",
    "reason",
]

GZIP = b"\x1f\x8b"
BLOCK_BYTES = 1 << 20
#: Bytes of the largest file that is read; a whole CIFAR archive holds 180 MB.
MAX_BYTES = 1 << 30
#: An archive may unpack to this many times its size, and a small one to so many bytes. CIFAR: 1.1 times.
MAX_RATIO, SMALL_BYTES = 10, 50_000_000


def read_checked(path: Path, md5: str | None) -> bytes:
    """A file's bytes.

    Raises:
        DataError: the file cannot be read or is too large, or an MD5 is given and differs.
    """
    try:
        data = read_regular(path, MAX_BYTES)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read: {one_line(error)}") from error
    if md5 is not None:
        _compare(path, md5, hashlib.md5(data, usedforsecurity=False).hexdigest())
    return data


def members_of_archive(source: Path, folder: str, wanted: set[str]) -> Iterator[tuple[str, bytes]]:
    """Names and bytes of the wanted plain files of a folder in a tar.gz, in the archive's order.

    Raises:
        DataError: the source is no tar.gz archive, is damaged, unpacks to far more than its size, or lacks a
            file.
    """
    missing = {f"{folder}/{name}": name for name in wanted}
    try:
        with (
            open_regular(source) as packed,
            Unpacked(packed) as plain,
            tarfile.open(fileobj=plain, mode="r|") as archive,
        ):
            for member in archive:
                stream = archive.extractfile(member) if member.isreg() else None
                if stream is None or member.name not in missing:
                    continue
                if member.size > MAX_BYTES:
                    raise DataError(f"{source}: {member.name} is of {member.size:,} bytes; not a CIFAR file")
                yield missing.pop(member.name), stream.read()
            while plain.read(BLOCK_BYTES):
                pass  # to the end: gzip's checksum is there
    except (tarfile.TarError, EOFError, zlib.error, OSError, ValueError) as error:
        raise DataError(f"{source}: not a tar.gz archive, or a damaged one: {one_line(error)}") from error
    if missing:
        raise DataError(f"{source}: the archive lacks {', '.join(sorted(missing))}")


class Unpacked(gzip.GzipFile):
    """The content of a gzip file, whose reading raises `ValueError` once it is far more than the file.

    Attributes:
        left: number of bytes that it may still have.
    """

    def __init__(self, packed: BinaryIO) -> None:
        super().__init__(fileobj=packed, mode="rb")
        self.left = max(SMALL_BYTES, MAX_RATIO * os.fstat(packed.fileno()).st_size)

    def read(self, size: int | None = -1) -> bytes:
        """The next bytes, as many as are given."""
        data = super().read(size)
        self.left -= len(data)
        if self.left < 0:
            raise ValueError(f"it unpacks to more than {MAX_RATIO} times its size")
        return data


@contextmanager
def open_unpacked(path: Path) -> Iterator[tuple[BinaryIO | Unpacked, int]]:
    """A file's content, and its number of bytes; one packed by gzip is unpacked, to so many bytes at most.

    Raises:
        OSError, ValueError: the path is missing, or no regular file.
    """
    with open_regular(path) as file:
        is_packed = file.read(len(GZIP)) == GZIP
        file.seek(0)
        if is_packed:
            with Unpacked(file) as content:
                yield content, content.left
        else:
            yield file, os.fstat(file.fileno()).st_size


def reason(error: Exception) -> str:
    """What an error says, in one line; its type too, unless it is a `ValueError`."""
    return str(error) if isinstance(error, ValueError) else one_line(error)


def check_md5(path: Path, expected: str) -> None:
    """Compare a file's MD5 with the expected one; `DataError` if it differs or the file cannot be read."""
    digest = hashlib.md5(usedforsecurity=False)
    try:
        with open_regular(path) as stream:
            while block := stream.read(BLOCK_BYTES):
                digest.update(block)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read: {one_line(error)}") from error
    _compare(path, expected, digest.hexdigest())


def _compare(path: Path, expected: str, found: str) -> None:
    if found != expected:
        raise DataError(
            f"{path}: not the official file: MD5 expected {expected}, found {found}; "
            "download it again, or import other files with --no-checksum"
        )

"""Reading the files of a tar.gz archive, or of its unpacked folder, into memory."""

from __future__ import annotations

import gzip
import hashlib
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from kdcl_dist.errors import DataError, one_line

__all__ = ["check_md5", "members_of_archive", "read_checked"]

BLOCK_BYTES = 1 << 20
#: Bytes of the largest file that is read; a whole CIFAR archive holds 180 MB.
MAX_BYTES = 1 << 30


def read_checked(path: Path, md5: str | None) -> bytes:
    """A file's bytes.

    Raises:
        DataError: the file cannot be read, or an MD5 is given and differs.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {one_line(error)}") from error
    if md5 is not None:
        _compare(path, md5, hashlib.md5(data, usedforsecurity=False).hexdigest())
    return data


def members_of_archive(source: Path, folder: str, wanted: set[str]) -> Iterator[tuple[str, bytes]]:
    """Names and bytes of the wanted plain files of a folder in a tar.gz, in the archive's order.

    Raises:
        DataError: the source is no tar.gz archive, is damaged, or lacks a file.
    """
    missing = {f"{folder}/{name}": name for name in wanted}
    try:
        with gzip.open(source) as plain, tarfile.open(fileobj=plain, mode="r|") as archive:
            for member in archive:
                stream = archive.extractfile(member) if member.isreg() else None
                if stream is None or member.name not in missing:
                    continue
                if member.size > MAX_BYTES:
                    raise DataError(f"{source}: {member.name} is of {member.size:,} bytes; not a CIFAR file")
                yield missing.pop(member.name), stream.read()
            while plain.read(BLOCK_BYTES):
                pass  # to the end: gzip's checksum is there
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        raise DataError(f"{source}: not a tar.gz archive, or a damaged one: {one_line(error)}") from error
    if missing:
        raise DataError(f"{source}: the archive lacks {', '.join(sorted(missing))}")


def check_md5(path: Path, expected: str) -> None:
    """Compare a file's MD5 with the expected one; `DataError` if it differs or the file cannot be read."""
    digest = hashlib.md5(usedforsecurity=False)
    try:
        with path.open("rb") as stream:
            while block := stream.read(BLOCK_BYTES):
                digest.update(block)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {one_line(error)}") from error
    _compare(path, expected, digest.hexdigest())


def _compare(path: Path, expected: str, found: str) -> None:
    if found != expected:
        raise DataError(
            f"{path}: not the official file: MD5 expected {expected}, found {found}; "
            "download it again, or import other files with --no-checksum"
        )

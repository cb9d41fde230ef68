"""Reading files that may come from anyone: regular files, of a limited size, which unfold to no more."""

from __future__ import annotations

import os
import stat
import zipfile
from pathlib import Path
from typing import BinaryIO

__all__ = ["check_stored", "open_regular", "read_regular"]


def open_regular(path: Path) -> BinaryIO:
    """Open a file for reading. A FIFO or a device, whose reading could wait for ever, is refused.

    Raises:
        ValueError: the path is no regular file; one line of text.
        OSError: the file is missing or cannot be read.
    """
    _check_regular(path.stat().st_mode)  # a device may act on being opened
    # Without O_NONBLOCK, a FIFO that takes the file's place meanwhile would wait for a writer.
    file = os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb")
    try:
        _check_regular(os.fstat(file.fileno()).st_mode)
    except BaseException:
        file.close()
        raise
    return file


def read_regular(path: Path, limit: int) -> bytes:
    """A regular file's content.

    Args:
        path: the file.
        limit: bytes of the largest file that is read.

    Raises:
        ValueError: the path is no regular file, or the file is larger; one line of text.
        OSError: the file is missing or cannot be read.
    """
    with open_regular(path) as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise ValueError(f"larger than {limit:,} bytes")
    return data


def check_stored(file: BinaryIO) -> None:
    """Check that a zip archive unpacks to no more than its own size; any other file passes.

    PyTorch writes archives without compression, but reads compressed ones. Such a part, or parts that share
    their bytes, could unpack to a thousand times the file. The file is back at its start afterwards.

    Raises:
        ValueError: the archive unpacks to more, or is damaged; one line of text.
    """
    file.seek(0)
    is_zip = file.read(4) == b"PK\3\4"  # as torch.load decides
    size = file.seek(0, os.SEEK_END)
    try:
        unpacked = sum(entry.file_size for entry in zipfile.ZipFile(file).infolist()) if is_zip else 0
    except (zipfile.BadZipFile, NotImplementedError) as error:
        raise ValueError(f"a damaged archive: {error}") from error
    if unpacked > size:
        raise ValueError(f"it unpacks to {unpacked:,} bytes, but has {size:,}; PyTorch compresses nothing")
    file.seek(0)


def _check_regular(mode: int) -> None:
    if not stat.S_ISREG(mode):
        raise ValueError("a folder, not a file" if stat.S_ISDIR(mode) else "not a regular file")

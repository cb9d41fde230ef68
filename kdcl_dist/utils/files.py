"""Reading files that may come from anyone: regular files, of a limited size, which unfold to no more."""

from __future__ import annotations

import os
import stat
import zipfile
import zlib
from pathlib import Path
from typing import BinaryIO

__all__ = ["BLOCK_BYTES", "check_stored", "open_regular", "read_regular"]

BLOCK_BYTES = 1 << 20
#: The one function that `torch.load(weights_only=True)` calls to which a number is enough to take any memory.
UNBOUNDED = b"bytearray"


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
        fits = os.fstat(file.fileno()).st_size <= limit  # nothing is read of a file that does not
        data = file.read(limit + 1) if fits else b""
    if not fits or len(data) > limit:  # it may have grown
        raise ValueError(f"larger than {limit:,} bytes")
    return data


def check_stored(file: BinaryIO) -> None:
    """Check that a file of `torch.save` takes no more memory than its own size.

    PyTorch writes archives without compression, but reads compressed ones. Such a part, or parts that share
    their bytes, could unpack to a thousand times the file. The file is back at its start afterwards.

    Raises:
        ValueError: the file takes more, or is a damaged archive; one line of text.
    """
    file.seek(0)
    is_zip = file.read(4) == b"PK\3\4"  # as torch.load decides
    try:
        unbounded = _check_archive(file) if is_zip else _has_unbounded(file)
    except (zipfile.BadZipFile, RuntimeError, EOFError, zlib.error) as error:
        raise ValueError(f"a damaged archive: {error}") from error
    if unbounded:
        raise ValueError("it holds a bytearray, which may be of any size; tensors only are read")
    file.seek(0)


def _check_archive(file: BinaryIO) -> bool:
    """Whether a pickle in an archive has a bytearray; `ValueError` if the archive is larger unpacked."""
    with zipfile.ZipFile(file) as archive:
        unpacked = sum(entry.file_size for entry in archive.infolist())
        if unpacked > (size := file.seek(0, os.SEEK_END)):
            raise ValueError(
                f"it unpacks to {unpacked:,} bytes, but has {size:,}; PyTorch compresses nothing"
            )
        pickles = [entry for entry in archive.infolist() if entry.filename.lower().endswith(".pkl")]
        return any(UNBOUNDED in archive.read(entry) for entry in pickles)


def _has_unbounded(file: BinaryIO) -> bool:
    file.seek(0)
    end = b""
    while block := file.read(BLOCK_BYTES):
        if UNBOUNDED in end + block:
            return True
        end = block[-len(UNBOUNDED) :]
    return False


def _check_regular(mode: int) -> None:
    if not stat.S_ISREG(mode):
        raise ValueError("a folder, not a file" if stat.S_ISDIR(mode) else "not a regular file")

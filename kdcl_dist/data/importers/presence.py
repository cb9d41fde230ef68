"""Whether a path that a user gave is there: an error of the file system is one line, no traceback."""

from __future__ import annotations

import os
from pathlib import Path

from kdcl_dist.errors import DataError, one_line

__all__ = ["is_folder", "is_there", "real_name"]


def is_there(path: Path) -> bool:
    """Whether there is a file or folder; `DataError` if the file system cannot tell."""
    try:
        return path.exists()
    except OSError as error:  # a name that is too long, a folder above it that may not be read
        raise _unknown(path, error) from error


def is_folder(path: Path) -> bool:
    """Whether there is a folder; `DataError` if the file system cannot tell."""
    try:
        return path.is_dir()
    except OSError as error:  # as above
        raise _unknown(path, error) from error


def real_name(path: Path) -> str:
    """The name of the file or folder that a path leads to, also of `.`; of links in a circle, their own."""
    return Path(os.path.realpath(path)).name  # `Path.resolve` raises `RuntimeError` for such links


def _unknown(path: Path, error: OSError) -> DataError:
    return DataError(f"{path}: cannot be opened: {one_line(error)}")

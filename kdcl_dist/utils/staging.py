"""Folders that appear under their name only when they are complete."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kdcl_dist.errors import DataError, one_line

__all__ = ["part_of", "publish", "staged"]


def part_of(folder: Path) -> Path:
    """The path for the content of an incomplete folder: `FOLDER.part`.

    Raises:
        DataError: the folder exists already and is not empty, cannot be read, or is a mount point.
    """
    folder = _real(folder)
    if os.path.ismount(folder):
        raise DataError(f"{folder}: is a mount point, which no new folder can replace: choose one below it")
    try:
        taken = folder.is_file() or (folder.exists() and any(folder.iterdir()))
    except OSError as error:
        raise DataError(f"{folder}: cannot be written: {one_line(error)}") from error
    if taken:
        raise DataError(f"{folder}: exists already; delete it or choose another path")
    return folder.with_name(folder.name + ".part")


def publish(part: Path, folder: Path) -> None:
    """Give a complete folder its name.

    Raises:
        DataError: the folder cannot be written.
    """
    try:
        part.replace(_real(folder))
    except OSError as error:
        raise DataError(f"{folder}: cannot be written: {one_line(error)}") from error


def _real(folder: Path) -> Path:
    """The folder itself where the path is a symbolic link: what is complete then moves on one disk."""
    return Path(os.path.realpath(folder))


@contextmanager
def staged(folder: Path) -> Iterator[Path]:
    """A new path to write into, which becomes the folder at the end, or is deleted after an error.

    Raises:
        DataError: the folder exists, or cannot be written.
    """
    part = part_of(folder)
    try:
        part.mkdir(parents=True)
    except FileExistsError:
        raise DataError(
            f"{part}: left by a command that was interrupted, or by one that still runs; delete it"
        ) from None
    except OSError as error:
        raise DataError(f"{folder}: cannot be written: {one_line(error)}") from error
    try:
        yield part
        publish(part, folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)

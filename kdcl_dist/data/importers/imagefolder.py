"""Folders of images, `train/CLASS/FILE` and `val/CLASS/FILE`: the layout of ImageNet."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from kdcl_dist.data.importers.check import Item
from kdcl_dist.errors import DataError, one_line

__all__ = ["ImageFolder"]

SPLITS = ("train", "val")


class ImageFolder:
    """The images of a folder; classes are the names of the folders in `train`, sorted.

    Only one class's file names are in memory at a time.

    Raises:
        DataError: a split or a class has no images, or the splits have different classes.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.name = f"images of the folder {folder.resolve().name!r}"
        self.classes = _classes(folder)
        self.counts = {}
        digest = hashlib.sha256()
        for split in SPLITS:
            self.counts[split], empty = 0, []
            for label, name in enumerate(self.classes):
                files = self._files(split, name)
                self.counts[split] += len(files)
                empty += [] if files else [name]
                for file, size, changed_ns in files:
                    digest.update(repr((split, label, file, size, changed_ns)).encode("utf-8"))
            if empty:
                raise DataError(f"{folder / split}: folders without images: {_shorten(empty)}")
        self.identity = digest.hexdigest()

    def items(self, split: str) -> Iterator[Item]:
        """The files of a split, sorted by class and name."""
        for label, name in enumerate(self.classes):
            for file, size, _ in self._files(split, name):
                yield Item(label, f"{split}/{name}/{file}", self.folder / split / name / file, size)

    def _files(self, split: str, name: str) -> list[tuple[str, int, int]]:
        """Name, bytes and time of change (ns) of every file in a class's folder."""
        try:
            with os.scandir(self.folder / split / name) as entries:
                found = [(entry.name, _stat(entry)) for entry in entries]
        except OSError as error:
            raise DataError(f"{self.folder / split / name}: cannot be read: {one_line(error)}") from error
        return sorted((file, *stat) for file, stat in found)


def _stat(entry: os.DirEntry[str]) -> tuple[int, int]:
    try:
        found = entry.stat()
    except OSError:  # a dangling link: rejected when its image is checked
        return 0, 0
    return found.st_size, found.st_mtime_ns


def _classes(folder: Path) -> tuple[str, ...]:
    names = {}
    for split in SPLITS:
        try:
            names[split] = {path.name for path in (folder / split).iterdir() if path.is_dir()}
        except OSError as error:
            raise DataError(f"{folder / split}: cannot be read as a folder: {one_line(error)}") from error
        names[split] = {name for name in names[split] if not name.startswith(".")}
    if names["train"] != names["val"]:
        only = {split: names[split] - names[other] for split, other in (SPLITS, SPLITS[::-1])}
        text = "; ".join(
            f"only in {split}: {_shorten(sorted(found))}" for split, found in only.items() if found
        )
        raise DataError(f"{folder}: train and val have different classes: {text}")
    if not names["train"]:
        raise DataError(f"{folder / 'train'}: it holds no folder, of which each would be a class")
    for name in names["train"]:
        if not _is_utf8(name):
            raise DataError(f"{folder}: the class folder {name!r} is not named in UTF-8")
    return tuple(sorted(names["train"]))


def _is_utf8(name: str) -> bool:
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:  # undecodable bytes became lone surrogates
        return False
    return True


def _shorten(names: list[str]) -> str:
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")

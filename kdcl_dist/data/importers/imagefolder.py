"""Folders of images, `train/CLASS/FILE` and `val/CLASS/FILE`: the layout of ImageNet.

A class's folder may have folders in it, at any depth; torchvision's `ImageFolder` reads the same.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from kdcl_dist.data.importers.check import Item
from kdcl_dist.data.importers.class_names import check_spelling
from kdcl_dist.errors import DataError, one_line
from kdcl_dist.utils.hidden import is_hidden

__all__ = ["ImageFolder"]

SPLITS = ("train", "val")


class ImageFolder:
    """The images of a folder; classes are the names of the folders in `train`, sorted.

    Only one class's file names are in memory at a time.

    Raises:
        DataError: a split or a class has no images, the splits have different classes, or two class names
            differ in their spelling only.
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
        """The files of a split, sorted by class, folder and name."""
        for label, name in enumerate(self.classes):
            for file, size, _ in self._files(split, name):
                yield Item(label, f"{split}/{name}/{file}", self.folder / split / name / file, size)

    def _files(self, split: str, name: str) -> list[tuple[str, int, int]]:
        """Relative path, bytes and time of change (ns) of every file below a class's folder."""
        found = sorted(_walk(f"{self.folder / split / name}", "", ()))
        return [(f"{inner}/{file}"[1:], *stat) for inner, file, stat in found]


#: A file's bytes and its time of change (ns).
_Stat = tuple[int, int]


def _walk(folder: str, inner: str, above: tuple[str, ...]) -> Iterator[tuple[str, str, _Stat]]:
    """Inner folder ("" or "/a/b"), name and `_Stat` of every file in a folder; no hidden ones; through links.

    Raises:
        DataError: a folder cannot be read, or a link leads back to one of the folders `above`.
    """
    real = os.path.realpath(folder + inner)
    if real in above:
        raise DataError(f"{folder}{inner}: a link back to {real}, a folder above it; delete the link")
    try:
        with os.scandir(real) as entries:
            for entry in entries:
                if is_hidden(entry.name):
                    continue
                if _is_folder(entry):
                    yield from _walk(folder, f"{inner}/{entry.name}", (*above, real))
                else:
                    yield inner, entry.name, _stat(entry)
    except OSError as error:
        raise DataError(f"{folder}{inner}: cannot be read: {one_line(error)}") from error


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _stat(entry: os.DirEntry[str]) -> _Stat:
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
        names[split] = {name for name in names[split] if not is_hidden(name)}
    check_spelling(sorted(names["train"] | names["val"]), str(folder))
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

"""Folders of images: `train/CLASS/FILE` and `val/CLASS/FILE`, the layout of ImageNet, or `CLASS/FILE`.

A class's folder may have folders in it, at any depth; torchvision's `ImageFolder` reads the same.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kdcl_dist.data.importers.check import Item
from kdcl_dist.data.importers.class_names import check_spelling
from kdcl_dist.data.importers.presence import is_folder, real_name
from kdcl_dist.errors import DataError, one_line
from kdcl_dist.utils.hidden import is_hidden

__all__ = ["ImageFolder"]


class ImageFolder:
    """The images of a folder; classes are the names of the folders in `train`, sorted.

    Only one class's file names are in memory at a time.

    Args:
        folder: a folder with `train`, and with `val` or else `test`.
        flat: whether the folder has the classes itself, all of the training set.

    Raises:
        DataError: a split or a class has no images, the splits have different classes, or two class names
            differ in their spelling only.
    """

    def __init__(self, folder: Path, *, flat: bool = False) -> None:
        self.folder = folder
        self.name = f"images of the folder {real_name(folder)!r}"
        self.places = _flat(folder) if flat else _splits(folder)
        self.class_folders = tuple(folder / place for place in self.places.values())
        self.classes = _classes(folder, self.class_folders)
        digest = hashlib.sha256()
        sizes = {split: self._survey(split, digest) for split in self.places}
        self.counts = {split: sum(found) for split, found in sizes.items()}
        self.identity = digest.hexdigest()
        self.train_labels = np.repeat(np.arange(len(self.classes)), sizes["train"])

    def _survey(self, split: str, digest: Any) -> list[int]:
        """Number of files of each class; adds the files to the digest."""
        sizes = []
        for label, name in enumerate(self.classes):
            files = self._files(split, name)
            sizes.append(len(files))
            for file, size, changed_ns in files:
                digest.update(repr((split, label, file, size, changed_ns)).encode("utf-8"))
        if empty := [name for name, size in zip(self.classes, sizes, strict=True) if not size]:
            where = self.folder / self.places[split]
            raise DataError(f"{where}: folders without images: {_shorten(empty)}")
        return sizes

    def items(self, split: str) -> Iterator[Item]:
        """The files of a split, sorted by class, folder and name."""
        for label, name in enumerate(self.classes):
            for file, size, _ in self._files(split, name):
                place = f"{self.places[split]}{name}/{file}"
                yield Item(label, place, self.folder / place, size)

    def _files(self, split: str, name: str) -> list[tuple[str, int, int]]:
        """Relative path, bytes and time of change (ns) of every file below a class's folder."""
        found = sorted(_walk(f"{self.folder / self.places[split] / name}", "", ()))
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


def _splits(folder: Path) -> dict[str, str]:
    """The beginning of the paths of a split's classes, by split."""
    if is_folder(folder) and not is_folder(folder / "train"):
        raise DataError(
            f"{folder}: it has no folder 'train'; if the folders in it are the classes, "
            "say --test-fraction 0.2: a fifth of each class becomes the test set"
        )
    other = "test" if is_folder(folder / "test") and not is_folder(folder / "val") else "val"
    return {"train": "train/", other: f"{other}/"}


def _flat(folder: Path) -> dict[str, str]:
    if is_folder(folder / "train"):
        raise DataError(
            f"{folder}: it has a folder 'train', which is no class; leave out the fraction, or import "
            f"{folder / 'train'} to divide its images"
        )
    return {"train": ""}


def _classes(folder: Path, splits: Sequence[Path]) -> tuple[str, ...]:
    names = {path.name: _folders(path) for path in splits}
    found, common = set[str]().union(*names.values()), set.intersection(*names.values())
    check_spelling(sorted(found), str(folder))
    if found != common:
        text = "; ".join(
            f"only in {split}: {_shorten(sorted(within - common))}"
            for split, within in names.items()
            if within - common
        )
        raise DataError(f"{folder}: {' and '.join(names)} have different classes: {text}")
    if not found:
        raise DataError(f"{splits[0]}: it holds no folder, of which each would be a class")
    for name in found:
        if not _is_utf8(name):
            raise DataError(f"{folder}: the class folder {name!r} is not named in UTF-8")
    return tuple(sorted(found))


def _folders(folder: Path) -> set[str]:
    try:
        return {path.name for path in folder.iterdir() if path.is_dir() and not is_hidden(path.name)}
    except OSError as error:
        raise DataError(f"{folder}: cannot be read as a folder: {one_line(error)}") from error


def _is_utf8(name: str) -> bool:
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:  # undecodable bytes became lone surrogates
        return False
    return True


def _shorten(names: list[str]) -> str:
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")

"""CIFAR-10 and CIFAR-100 from the official python archives, or from their unpacked folders.

Shapes: N images, C channels, H W image, D = C * H * W.
"""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from kdcl_dist.data.dataset import Info
from kdcl_dist.data.importers.archive import check_md5, members_of_archive, read_checked
from kdcl_dist.data.importers.inert_pickle import read_pickle
from kdcl_dist.data.importers.pixel_sums import mean_and_std, pixel_sums
from kdcl_dist.data.importers.presence import is_folder, is_there
from kdcl_dist.data.writer import write_batches
from kdcl_dist.errors import DataError
from kdcl_dist.utils.staging import staged

__all__ = ["LAYOUTS", "ArchiveLayout", "import_cifar"]

SHAPE = (3, 32, 32)
SOURCE = (
    "A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009, "
    "https://www.cs.toronto.edu/~kriz/cifar.html"
)


class _Labelled(NamedTuple):
    """Labels, and images as uint8."""

    labels_N: list[int]
    images_ND: npt.NDArray[np.uint8]


@dataclass(frozen=True)
class ArchiveLayout:
    """The content of an archive: its folder, files with their MD5, and the keys of labels and class names."""

    folder: str
    archive_md5: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    meta: str
    names: bytes
    labels: bytes
    md5: dict[str, str]


LAYOUTS = {
    "cifar10": ArchiveLayout(
        folder="cifar-10-batches-py",
        archive_md5="c58f30108f718f92721af3b95e74349a",
        train=("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5"),
        test=("test_batch",),
        meta="batches.meta",
        names=b"label_names",
        labels=b"labels",
        md5={
            "data_batch_1": "c99cafc152244af753f735de768cd75f",
            "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
            "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
            "data_batch_4": "634d18415352ddfa80567beed471001a",
            "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
            "test_batch": "40351d587109b95175f43aff81a1287e",
            "batches.meta": "5ff9c542aee3614f3951f8cda6e48888",
        },
    ),
    "cifar100": ArchiveLayout(
        folder="cifar-100-python",
        archive_md5="eb9058c3a382ffc7106e4002c42a8d85",
        train=("train",),
        test=("test",),
        meta="meta",
        names=b"fine_label_names",
        labels=b"fine_labels",
        md5={
            "train": "16019d7e3df5f24257cddd939b257f8d",
            "test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
            "meta": "7973b15100ade9c7d40fb424638fde48",
        },
    ),
}


def import_cifar(kind: str, source: Path, folder: Path, *, checksums: bool = True) -> list[Path]:
    """Write train.arrow and test.arrow (raw pixels, in the order of the files); returns their paths.

    The result is deterministic, byte for byte. Both files have the training images' mean and deviation.

    Args:
        kind: "cifar10" or "cifar100" (with its 100 fine labels).
        source: the tar.gz, or the unpacked folder.
        folder: the folder to write; must be missing or empty.
        checksums: whether the source must be the official files, byte for byte.

    Raises:
        DataError: the source is missing, differs or is damaged, or the folder cannot be written.
    """
    layout = LAYOUTS[kind]
    with staged(folder) as part:
        loaded = _load(source, layout, checksums)
        classes = loaded[layout.meta]
        images = [loaded[name].images_ND for name in layout.train]
        with ThreadPoolExecutor(2) as pool:
            sums_F2C = np.array(list(pool.map(_sums, images)))
        mean, std = mean_and_std(sums_F2C.sum(0), sum(map(len, images)) * math.prod(SHAPE[1:]))
        info = Info(classes, "raw", SHAPE[0], SHAPE, mean, std, SOURCE)
        for split, names in (("train", layout.train), ("test", layout.test)):
            for name in names:
                _check_labels(loaded[name].labels_N, len(classes), f"{source}: {name}")
            write_batches(part / f"{split}.arrow", (loaded[name] for name in names), info)
    return [folder / "train.arrow", folder / "test.arrow"]


def _load(source: Path, layout: ArchiveLayout, checksums: bool) -> dict[str, Any]:
    """Content of each file by its name: `_Labelled`, or class names."""

    def parse(name: str, data: bytes) -> Any:
        """The content of one file."""
        return (_classes if name == layout.meta else _labelled)(data, layout, f"{source}: {name}")

    if not is_there(source):
        raise DataError(f"{source}: no such file or folder")
    if not is_folder(source):
        if checksums:
            check_md5(source, layout.archive_md5)
        members = members_of_archive(source, layout.folder, set(layout.md5))
        return {name: parse(name, data) for name, data in members}
    inner = source / layout.folder if is_folder(source / layout.folder) else source

    def load(name: str) -> Any:
        """The content of one file of the folder."""
        return parse(name, read_checked(inner / name, layout.md5[name] if checksums else None))

    with ThreadPoolExecutor(2) as pool:  # hashing and reading release the interpreter lock
        return dict(zip(layout.md5, pool.map(load, layout.md5), strict=True))


def _classes(data: bytes, layout: ArchiveLayout, where: str) -> tuple[str, ...]:
    names = read_pickle(data, where).get(layout.names)
    if not isinstance(names, list) or not names or not all(isinstance(name, bytes | str) for name in names):
        raise DataError(f"{where}: it lacks the class names {layout.names.decode()!r}")
    classes = tuple(
        name if isinstance(name, str) else name.decode("utf-8", "backslashreplace") for name in names
    )
    if len(set(classes)) != len(classes):
        raise DataError(f"{where}: it names a class twice")
    return classes


def _labelled(data: bytes, layout: ArchiveLayout, where: str) -> _Labelled:
    content = read_pickle(data, where)
    images_ND, labels = content.get(b"data"), content.get(layout.labels)
    size = math.prod(SHAPE)
    if not isinstance(images_ND, np.ndarray) or images_ND.shape[1:] != (size,) or not len(images_ND):
        shape = getattr(images_ND, "shape", None)
        raise DataError(f"{where}: 'data' must be an array of N x {size} bytes (found shape {shape})")
    if images_ND.dtype != np.uint8:
        raise DataError(f"{where}: 'data' must be of type uint8 (found {images_ND.dtype})")
    if isinstance(labels, np.ndarray):
        labels = labels.tolist()
    if not isinstance(labels, list) or len(labels) != len(images_ND):
        found = len(labels) if isinstance(labels, list) else "none"
        raise DataError(
            f"{where}: {layout.labels.decode()!r} must hold {len(images_ND)} labels (found {found})"
        )
    if not all(type(label) is int for label in labels):
        raise DataError(f"{where}: a label is not a whole number")
    return _Labelled(labels, images_ND)


def _check_labels(labels_N: list[int], classes: int, where: str) -> None:
    for row, label in enumerate(labels_N):
        if not 0 <= label < classes:
            raise DataError(f"{where}: the label in row {row} is {label}, not one of 0 to {classes - 1}")


def _sums(images_ND: npt.NDArray[np.uint8]) -> list[list[int]]:
    return pixel_sums(images_ND, SHAPE[0])

"""MNIST and the sets that are published in its format: four IDX files, plain or packed by gzip.

Shapes: N images, B rows of a batch, H W image, D = H * W.
"""

from __future__ import annotations

import string
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from kdcl_dist.data.dataset import Info
from kdcl_dist.data.importers.class_names import read_class_names
from kdcl_dist.data.importers.idx_file import IdxFile
from kdcl_dist.data.importers.pixel_sums import mean_and_std, pixel_sums
from kdcl_dist.data.importers.presence import is_folder, is_there, real_name
from kdcl_dist.data.writer import Batch, write_batches
from kdcl_dist.errors import DataError
from kdcl_dist.utils.staging import staged

__all__ = ["SETS", "PublishedSet", "import_idx"]


@dataclass(frozen=True)
class PublishedSet:
    """A set that is published in this format.

    Attributes:
        classes: class names.
        source, license: see `Info`.
        train, test: beginnings of the names of its files.
        first_label: the label of the first class.
        transposed: whether rows and columns of the images are exchanged.
    """

    classes: tuple[str, ...]
    source: str
    license: str = ""
    train: str = "train-"
    test: str = "t10k-"
    first_label: int = 0
    transposed: bool = False


def _emnist(name: str, classes: str, first_label: int = 0) -> PublishedSet:
    """A set of EMNIST, whose files hold each image transposed (Cohen et al., section II.B)."""
    return PublishedSet(
        tuple(classes),
        "G. Cohen et al., EMNIST: an extension of MNIST to handwritten letters, 2017, arXiv:1702.05373",
        train=f"emnist-{name}-train-",
        test=f"emnist-{name}-test-",
        first_label=first_label,
        transposed=True,
    )


#: Digits, and letters without the small ones that look like the capital.
MERGED = string.digits + string.ascii_uppercase + "abdefghnqrt"

SETS = {
    "mnist": PublishedSet(
        tuple(string.digits),
        "Y. LeCun, C. Cortes, C. Burges, The MNIST database of handwritten digits, 1998",
    ),
    "fashion-mnist": PublishedSet(
        (
            *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
            *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
        ),
        "H. Xiao, K. Rasul, R. Vollgraf, Fashion-MNIST, 2017, arXiv:1708.07747",
        "MIT",
    ),
    "kmnist": PublishedSet(
        ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo"),
        "T. Clanuwat et al., Deep Learning for Classical Japanese Literature, 2018, arXiv:1812.01718",
        "CC BY-SA 4.0",
    ),
    "emnist-balanced": _emnist("balanced", MERGED),
    "emnist-bymerge": _emnist("bymerge", MERGED),
    "emnist-byclass": _emnist("byclass", string.digits + string.ascii_uppercase + string.ascii_lowercase),
    "emnist-digits": _emnist("digits", string.digits),
    "emnist-letters": _emnist("letters", string.ascii_lowercase, first_label=1),
    "emnist-mnist": _emnist("mnist", string.digits),
}


class _Split(NamedTuple):
    """The images of a split (N, H, W), and its labels from 0."""

    images: IdxFile
    labels_N: npt.NDArray[np.int64]


def import_idx(source: Path, folder: Path, classes: str | None = None) -> list[Path]:
    """Write train.arrow and test.arrow (raw pixels, in the order of the files); returns their paths.

    The result is deterministic, byte for byte. Both files have the training images' mean and deviation. A
    batch of images is in memory at a time.

    Args:
        source: the folder of the four files, under their published names.
        folder: the folder to write; must be missing or empty.
        classes: a name in `SETS`, or a file of class names. None: the EMNIST set whose files are there, or
            else the classes are the numbers up to the largest training label.

    Raises:
        DataError: a file is missing or damaged, the files do not fit each other, or the folder cannot be
            written.
    """
    with staged(folder) as part:
        published = _published(source, classes)
        train, test = (_split(source, prefix, published) for prefix in (published.train, published.test))
        if test.images.shape[1:] != train.images.shape[1:]:
            raise DataError(
                f"{test.images.path}: images of {test.images.shape[1:]} pixels, but those of "
                f"{train.images.path.name} have {train.images.shape[1:]}"
            )
        names = published.classes or tuple(map(str, range(int(train.labels_N.max()) + 1)))
        for split in (train, test):
            _check_labels(split, len(names), published.first_label)
        info = _info(train.images, published, names)
        for name, split in (("train", train), ("test", test)):
            write_batches(part / f"{name}.arrow", _batches(split, published.transposed), info)
    return [folder / "train.arrow", folder / "test.arrow"]


def _published(source: Path, classes: str | None) -> PublishedSet:
    if not is_folder(source):
        raise DataError(f"{source}: no such folder; it must hold train-images-idx3-ubyte and three more")
    if classes in SETS:
        return SETS[classes]
    if classes is not None:
        return PublishedSet(read_class_names(Path(classes)), _own(source))
    there = [
        name for name, known in SETS.items() if known.transposed and _find(source, known.train, "images", 3)
    ]
    if len(there) > 1:
        raise DataError(f"{source}: it holds {', '.join(there)}; choose one with --classes")
    return SETS[there[0]] if there else PublishedSet((), _own(source))


def _own(source: Path) -> str:
    return f"IDX files of the folder {real_name(source)!r}"


def _split(source: Path, prefix: str, published: PublishedSet) -> _Split:
    images, labels = (
        IdxFile(_found(source, prefix, what, dimensions), dimensions)
        for what, dimensions in (("images", 3), ("labels", 1))
    )
    if labels.shape[0] != images.shape[0]:
        raise DataError(
            f"{labels.path}: {labels.shape[0]:,} labels, but {images.path.name} has "
            f"{images.shape[0]:,} images"
        )
    labels_N = np.concatenate(list(labels.batches())).ravel().astype(np.int64)
    return _Split(images, labels_N - published.first_label)


def _found(source: Path, prefix: str, what: str, dimensions: int) -> Path:
    if path := _find(source, prefix, what, dimensions):
        return path
    raise DataError(
        f"{source}: no {prefix}{what}-idx{dimensions}-ubyte in it, nor the same as .gz; "
        f"--classes knows the names of {', '.join(SETS)}"
    )


def _find(source: Path, prefix: str, what: str, dimensions: int) -> Path | None:
    """A file of a set: published with a dash or a dot in its name, and packed or not."""
    names = (f"{prefix}{what}{mark}idx{dimensions}-ubyte{end}" for end in ("", ".gz") for mark in "-.")
    return next((source / name for name in names if is_there(source / name)), None)


def _check_labels(split: _Split, classes: int, first: int) -> None:
    wrong = np.flatnonzero((split.labels_N < 0) | (split.labels_N >= classes))
    if len(wrong):
        raise DataError(
            f"{split.images.path.parent}: the label in row {wrong[0]} of the labels of "
            f"{split.images.path.name} is {split.labels_N[wrong[0]] + first}, not one of {first} to "
            f"{first + classes - 1}"
        )


def _info(images: IdxFile, published: PublishedSet, names: tuple[str, ...]) -> Info:
    count, height, width = images.shape
    if published.transposed:
        height, width = width, height
    sums_2C = sum(np.array(pixel_sums(images_BD, 1)) for images_BD in images.batches())
    mean, std = mean_and_std(np.asarray(sums_2C), count * height * width)
    shape = (1, height, width)
    return Info(names, "raw", 1, shape, mean, std, published.source, published.license)


def _batches(split: _Split, transposed: bool) -> Iterator[Batch]:
    _, height, width = split.images.shape
    row = 0
    for images_BD in split.images.batches():
        labels_B = split.labels_N[row : row + len(images_BD)]
        row += len(images_BD)
        images_BHW = images_BD.reshape(-1, height, width)
        yield labels_B, images_BHW.transpose(0, 2, 1) if transposed else images_BHW

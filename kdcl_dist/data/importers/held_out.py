"""A share of a training set that becomes another split: the same share of each class, drawn by a seed.

Shapes: N samples.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Protocol

import numpy as np
import numpy.typing as npt

from kdcl_dist.data.importers.check import Item
from kdcl_dist.data.importers.images import Source
from kdcl_dist.errors import DataError
from kdcl_dist.utils.seeding import Purpose, permutation

__all__ = ["HeldOut", "Labelled", "divided", "share_of_each_class"]


class Labelled(Source, Protocol):
    """A source that knows the labels of its training images before they are read."""

    @property
    def train_labels(self) -> npt.NDArray[np.int64]:
        """The label of each training image in their order; -1 where it has none."""


class HeldOut:
    """A source of which a share of each class of the training images becomes another split.

    Args:
        source: the images; it must have no split but the training set.
        split: name of the other split.
        fraction: its share of each class, in (0, 1).
        seed: draws the images; they are a pure function of it, the fraction and the labels.

    Raises:
        DataError: the source has another split, the fraction is none, or no class has two images.
    """

    def __init__(self, source: Labelled, split: str, fraction: float, seed: int) -> None:
        self.source, self.name, self.classes = source, source.name, source.classes
        self.class_folders = source.class_folders
        (self.train, *others), option = source.counts, f"--{split}-fraction"
        if others:
            raise DataError(f"{source.name}: it has {others[0]} images already; leave out {option}")
        if not 0 < fraction < 1:
            raise DataError(f"{option}: must be above 0 and below 1 (got {fraction})")
        rows = share_of_each_class(source.train_labels, fraction, seed)
        if not len(rows):
            raise DataError(f"{option}: no class of {source.name} has two images, so none can be held out")
        self.split_N = np.full(len(source.train_labels), self.train, object)
        self.split_N[rows] = split
        self.counts = {self.train: len(self.split_N) - len(rows), split: len(rows)}
        identity = json.dumps([source.identity, split, fraction, seed])
        self.identity = hashlib.sha256(identity.encode()).hexdigest()

    def items(self, split: str) -> Iterator[Item]:
        """The images of a split, in the order of the source."""
        for row, item in enumerate(self.source.items(self.train)):
            if row == len(self.split_N):
                raise DataError(f"{self.name}: the source changed during the import: it has more images")
            if self.split_N[row] == split:
                yield item


def divided(source: Labelled, fractions: Mapping[str, float | None], seed: int) -> Source:
    """The source, of which the share that one of the fractions gives becomes a split of that name.

    Raises:
        DataError: as `HeldOut`, or there are several fractions.
    """
    given = {split: fraction for split, fraction in fractions.items() if fraction is not None}
    if len(given) > 1:
        raise DataError(f"choose one of {' and '.join(f'--{split}-fraction' for split in given)}")
    for split, fraction in given.items():
        return HeldOut(source, split, fraction, seed)
    return source


def share_of_each_class(labels_N: npt.NDArray[np.int64], share: float, seed: int) -> npt.NDArray[np.int64]:
    """Sorted rows of a share of each class: at least one of it, and not all; none of a class with one sample.

    Args:
        labels_N: labels; rows with a label below 0 are never chosen.
        share: in (0, 1).
        seed: draws the rows.
    """
    chosen = [np.array([], np.int64)]
    for label in np.unique(labels_N[labels_N >= 0]):
        rows = np.flatnonzero(labels_N == label)
        size = min(max(round(len(rows) * share), 1), len(rows) - 1)
        chosen.append(rows[permutation(len(rows), seed, Purpose.HOLDOUT, int(label))[:size]])
    return np.sort(np.concatenate(chosen))

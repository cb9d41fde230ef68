"""Labels as a source has them, whole numbers or strings, and the classes that they name.

Shapes: N samples.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from kdcl_dist.data.importers.check import UNLABELLED
from kdcl_dist.data.importers.class_names import check_spelling
from kdcl_dist.errors import DataError

__all__ = ["LabelValues", "Value", "check_present", "classes_of", "name_order", "renumbered"]

Value = int | str


class LabelValues:
    """The labels of a split in their order; None stands for a label that cannot be read."""

    def __init__(self) -> None:
        self.numbers: dict[Value | None, int] = {}
        self.rows = array("q")

    def __len__(self) -> int:
        return len(self.rows)

    def extend(self, values: Iterable[Value | None]) -> None:
        """Add labels."""
        self.rows.extend(self.numbers.setdefault(value, len(self.numbers)) for value in values)

    @property
    def distinct(self) -> set[Value]:
        """The different labels."""
        return {value for value in self.numbers if value is not None}

    def labels(self, label_of: Mapping[Value, int]) -> npt.NDArray[np.int64]:
        """The index of each label among the classes; -1 where there is none."""
        known = [UNLABELLED if value is None else label_of[value] for value in self.numbers]
        labels_N: npt.NDArray[np.int64] = np.array(known, np.int64)[np.frombuffer(self.rows, np.int64)]
        return labels_N


def check_present(values: Sequence[Any], column: str, where: str, row: int) -> None:
    """See that no label is missing.

    Args:
        values: labels; a cell of a CSV file that is left out is text without a character.
        column: their column.
        where: the file, for messages.
        row: number of the first of them in it.

    Raises:
        DataError: one is null, or text of spaces only.
    """
    for number, value in enumerate(values, row):
        if value is None or (isinstance(value, str) and not value.strip()):
            kind = "null" if value is None else "empty"
            raise DataError(
                f"{where}: column {column!r} is {kind} in row {number}: fill it, or leave the row out"
            )


def name_order(own: Sequence[str], names: Sequence[str], where: str, other: str) -> list[int] | None:
    """For each number that is a label in a file, the number of the same class in another file.

    Args:
        own, names: class names of the file, and of the other; empty: it has none, and numbers count.
        where, other: the files, for messages.

    Returns:
        None: the numbers are the same.

    Raises:
        DataError: one of them names a class that the other does not.
    """
    if all(one == two for one, two in zip(own, names, strict=False)):
        return None  # also where one has names that follow the other's
    for here, there, first, second in ((own, names, where, other), (names, own, other, where)):
        if missing := dict.fromkeys(here).keys() - set(there):
            name = next(filter(missing.__contains__, here))
            raise DataError(
                f"{first}: it names the class {name!r}, which {second} does not: write both with the "
                "same class names"
            )
    numbers = {name: number for number, name in enumerate(names)}
    return [numbers[name] for name in own]


def renumbered(values: Sequence[Any], order: Sequence[int] | None) -> Sequence[Any]:
    """Labels of a file as numbers of another file's class names, see `name_order`; other labels stay."""
    if order is None:
        return values
    known = dict(enumerate(order))
    return [known.get(value, value) if type(value) is int else value for value in values]


def classes_of(
    splits: Mapping[str, LabelValues], names: tuple[str, ...], where: str, place: str, remedy: str = ""
) -> tuple[tuple[str, ...], dict[Value, int]]:
    """Class names, and the class of each label.

    Args:
        splits: the labels by split; the training set's first.
        names: class names, of which the labels are numbers from 0 or the names themselves; empty: the
            distinct labels of the training set, sorted, are the classes.
        where: the source, for messages.
        place: where in it the labels are, for messages.
        remedy: the end of the message on a label that is no class.

    Raises:
        DataError: a label is no class, labels are numbers and strings both, or two class names differ in
            their spelling only.
    """
    all_values = [value for labels in splits.values() for value in labels.distinct]
    if len({type(value) for value in all_values}) > 1:
        raise DataError(f"{where}: some labels in {place} are whole numbers, others are not")
    texts = {value for value in all_values if isinstance(value, str)}
    known: Iterable[Value] = _sorted(next(iter(splits.values())).distinct)
    if names:
        known = names if texts else range(len(names))
    label_of = {value: label for label, value in enumerate(known)}
    classes = names or tuple(str(value) for value in label_of)
    check_spelling(sorted(texts.union(classes)), where)
    for split, labels in splits.items():
        if unknown := _sorted(labels.distinct - label_of.keys()):
            raise DataError(
                f"{where}: the {split} files have the label {unknown[0]!r} in {place}, which is not one of "
                f"the {len(classes)} classes{remedy}"
            )
    return classes, label_of


def _sorted(values: Iterable[Any]) -> list[Any]:
    """Values of one type, sorted."""
    return sorted(values)

"""Opening what a recipe names as a data set.

`data.train` may be a path of this package's own files, `kdcl:NAME` of those that come with it, a table,
`hf:FOLDER`, or an import string of a data set or of a function that makes one: of this package's protocols,
or a torch map-style one of `(x, y)`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kdcl_dist.config.data import Data
from kdcl_dist.data.arrow_samples import open_arrow
from kdcl_dist.data.dataset import Dataset, ImageDataset, SampleDataset, checked
from kdcl_dist.data.importers.presence import is_there
from kdcl_dist.data.sources.opened import Opened, Tell
from kdcl_dist.data.sources.table import find_table
from kdcl_dist.data.sources.table_columns import Columns
from kdcl_dist.data.sources.table_set import open_table_set, open_unlabelled
from kdcl_dist.data.sources.torch_reader import is_map_style
from kdcl_dist.data.sources.torch_set import open_torch
from kdcl_dist.data.subset import of_classes
from kdcl_dist.errors import DataError, of_user_code
from kdcl_dist.utils.data_specs import DEMO, SHIPPED, data_import, data_path
from kdcl_dist.utils.import_strings import load_object

__all__ = ["DataSets", "open_dataset", "open_samples"]


class DataSets:
    """Opens the data sets of a recipe; those after the training set follow its classes and columns.

    Args:
        data: the section of the recipe.
        tell: takes a line for each data set in which something was found.
    """

    def __init__(self, data: Data, tell: Tell = lambda text: None) -> None:
        self.data, self.tell = data, tell
        self._train: Opened | None = None

    def open(self, name: str) -> Dataset:
        """Open the data set of a field, "train" before the others, with only the classes of `data.classes`.

        Raises:
            DataError: it is missing, damaged, of another kind, or does not fit the training set.
        """
        opened = _open(
            self.data.sets[name], self.data.label, self._train, lambda text: self.tell(f"data.{name}: {text}")
        )
        if name == "train":
            self._train = opened
        return of_classes(opened.dataset, self.data.classes)

    @property
    def columns(self) -> Columns | None:
        """The use of the training set's columns; None if it is no table, or not open."""
        return None if self._train is None else self._train.columns


def open_samples(spec: str, columns: Columns, classes: Sequence[str]) -> Dataset:
    """Open a data set whose samples are answered, and whose labels do not count, by its name in a recipe.

    Args:
        spec: the name.
        columns: those of the training set that a table follows, as `data.test` does.
        classes: of the training set.

    Raises:
        DataError: as `DataSets.open`.
    """
    if data_import(spec) is None and not spec.startswith(SHIPPED) and (table := find_table(spec)) is not None:
        return open_unlabelled(table, columns, classes)
    return open_dataset(spec)


def open_dataset(spec: str, label: str | None = None, tell: Tell = lambda text: None) -> Dataset:
    """Open a training set by its name in a recipe.

    Args:
        spec: the name.
        label: the column of labels of a table; None: the one called label, target or class.
        tell: takes a line if something was found in it.

    Raises:
        DataError: as `DataSets.open`.
    """
    return _open(spec, label, None, tell).dataset


def _open(spec: str, label: str | None, train: Opened | None, tell: Tell) -> Opened:
    if spec.startswith(SHIPPED):
        return Opened(open_arrow(_shipped(spec)))
    if data_import(spec) is not None:
        return Opened(_of_object(spec, None if train is None else train.dataset, tell))
    if (table := find_table(spec)) is not None:
        return open_table_set(table, label, train, tell)
    return Opened(open_arrow(spec))


def _shipped(spec: str) -> str:
    """The file of a data set that comes with this package."""
    if not is_there(Path(path := data_path(spec))):
        there = ", ".join(f"{SHIPPED}{file.stem}" for file in sorted(DEMO.glob("*.arrow")))
        raise DataError(f"{spec}: no such data set comes with kdcl_dist; there are {there}")
    return path


def _of_object(spec: str, train: Dataset | None, tell: Tell) -> Dataset:
    """The data set that an import string names, or that the function makes which it names."""
    where = f"data set {spec!r}"
    with of_user_code(DataError, where):
        found = load_object(spec)
        if not _is_data(found):
            found = found()
        if is_map_style(found) and not isinstance(found, (ImageDataset, SampleDataset)):
            return open_torch(where, found, train, tell)
        return checked(where, found)


def _is_data(found: Any) -> bool:
    is_own = isinstance(found, (ImageDataset, SampleDataset))
    return not isinstance(found, type) and (is_own or is_map_style(found))

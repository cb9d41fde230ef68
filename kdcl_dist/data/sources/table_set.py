"""A table as a data set: made into one Arrow file of this package in the cache, which all processes then map.

The same table gives the same bytes on every host, so that hosts can compare fingerprints.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError

from kdcl_dist.data.arrow_images import Info
from kdcl_dist.data.arrow_samples import open_arrow
from kdcl_dist.data.dataset import Dataset, ImageDataset
from kdcl_dist.data.importers.label_values import LabelValues, renumbered
from kdcl_dist.data.sample_writer import SampleWriter
from kdcl_dist.data.samples import Sample
from kdcl_dist.data.sources.cache import digest_of, entry, replaced
from kdcl_dist.data.sources.opened import Opened, Tell
from kdcl_dist.data.sources.table import Table
from kdcl_dist.data.sources.table_classes import classes_and_labels
from kdcl_dist.data.sources.table_columns import Columns, choose_columns
from kdcl_dist.data.sources.table_images import ImageFacts
from kdcl_dist.data.sources.table_rows import image_bytes, label_values, samples
from kdcl_dist.data.writer import write_dataset
from kdcl_dist.errors import DataError
from kdcl_dist.utils.text import NAME, shown

__all__ = ["Use", "open_table_set", "open_unlabelled", "plan_use", "write_set"]

#: Mean and deviation of each channel of images.
Scale = tuple[tuple[float, ...], tuple[float, ...]]
#: Chooses rows by their number in the table.
Rows = Callable[[int], bool]


@dataclass(frozen=True)
class Use:
    """How a table becomes a data set.

    Attributes:
        columns: the use of each column.
        classes: class names; a label is an index into this list.
        labels: the label of each row.
        scale: mean and deviation of the channels of the training set's images; None: those of these images.
        text: the same for people.
    """

    columns: Columns
    classes: tuple[str, ...]
    labels: list[int]
    scale: Scale | None
    text: str


@dataclass(frozen=True)
class _Kept:
    """What the cache keeps beside the file."""

    columns: Columns
    text: str

    __pydantic_config__ = ConfigDict(extra="forbid")


_KEPT = TypeAdapter(_Kept)


def open_table_set(table: Table, label: str | None, train: Opened | None, tell: Tell) -> Opened:
    """Open a table as a data set.

    Args:
        table: the table.
        label: the label's column; None: see `choose_columns`.
        train: the training set, which has the classes, columns and scale; None: this is the training set.
        tell: takes what was found.

    Raises:
        DataError: the table is damaged, has no such columns or labels, or the cache cannot be written.
    """
    path, beside = (entry(_key(table, label, train), table.content, suffix) for suffix in (".arrow", ".json"))
    if (found := _kept(path, beside)) is not None:
        dataset, kept = found
        tell(f"{kept.text}; known from {path}")
        return Opened(dataset, kept.columns)
    began = time.monotonic()
    use = plan_use(table, label, train)
    with replaced(path) as temporary:
        write_set(table, use, temporary)
    kept = _Kept(use.columns, use.text)
    with replaced(beside) as temporary:
        temporary.write_text(json.dumps(asdict(kept)))
    tell(f"{use.text}; found in {time.monotonic() - began:.1f} s, kept in {path}")
    return Opened(open_arrow(str(path)), kept.columns)


def open_unlabelled(table: Table, columns: Columns, classes: Sequence[str]) -> Dataset:
    """Open a table whose labels do not count, if it has any: all rows have the first class.

    Args:
        table: the table.
        columns, classes: those of a training set.

    Raises:
        DataError: the table is damaged, or has no such columns, or the cache cannot be written.
    """
    files = [os.path.realpath(file) for file in table.files]
    path = entry(
        digest_of("table without labels", files, asdict(columns), list(classes)), table.content, ".arrow"
    )
    with suppress(OSError, DataError):
        return open_arrow(str(path))
    columns.check(table.schema, table.name, labelled=False)
    rows = sum(len(batch) for _, _, batch in table.batches(columns.used[1:]))
    if not rows:
        raise DataError(f"{table.name}: the table has no rows")
    with replaced(path) as temporary:
        write_set(table, Use(columns, tuple(classes), [0] * rows, None, ""), temporary)
    return open_arrow(str(path))


def _key(table: Table, label: str | None, train: Opened | None) -> str:
    parts: list[Any] = [[os.path.realpath(file) for file in table.files], label, dict(table.class_names)]
    if train is not None:
        columns = None if train.columns is None else asdict(train.columns)
        parts += [list(train.dataset.classes), _scale(train), columns]
    return digest_of("table 2", *parts)  # another number: what was kept before may be read otherwise now


def plan_use(table: Table, label: str | None, train: Opened | None = None) -> Use:
    """How a table becomes a data set; arguments and errors as `open_table_set`."""
    columns = None if train is None else train.columns
    if columns is None:
        columns = choose_columns(table.schema, table.name, label)
    else:
        columns.check(table.schema, table.name)
    values = LabelValues()
    orders = table.orders_of(columns.label)
    for where, row, batch in table.batches([columns.label]):
        values.extend(renumbered(label_values(batch, columns.label, where, row), orders.get(where)))
    if not len(values):
        raise DataError(f"{table.name}: the table has no rows")
    known = None if train is None else list(train.dataset.classes)
    classes, label_of = classes_and_labels(table, columns.label, values, known)
    scale = None if train is None else _scale(train)
    text = _text(table, columns, classes, len(values))
    return Use(columns, classes, values.labels(label_of).tolist(), scale, text)


def write_set(table: Table, use: Use, path: Path, rows: Rows = lambda row: True) -> None:
    """Write the rows of a table as one `.arrow` file.

    Args:
        table, use: the table, and what `plan_use` says of it.
        path: of the file.
        rows: which rows.

    Raises:
        DataError: a value cannot be used, the table changed meanwhile, or the file cannot be written.
    """
    source = f"table {table.name}"
    if use.columns.image is not None:
        mean, std = _image_scale(table, use, rows)
        info = Info(use.classes, "encoded", len(mean), None, mean, std, source)
        write_dataset(path, ((label, data) for label, data, _ in _images(table, use, rows)), info)
        return
    with SampleWriter(path, use.classes, source=source) as writer:
        for label, sample in _samples(table, use, rows):
            writer.add(label, sample)


def _samples(table: Table, use: Use, rows: Rows) -> Iterator[tuple[int, Sample]]:
    labels = _Labels(table, use)
    for where, row, batch in table.batches(use.columns.used[1:]):
        for sample in samples(batch, use.columns, where, row):
            number, label = labels.take()
            if rows(number):
                yield label, sample


def _images(table: Table, use: Use, rows: Rows) -> Iterator[tuple[int, bytes, str]]:
    """Label, file and place of each image."""
    labels, image = _Labels(table, use), use.columns.image
    assert image is not None
    for where, row, batch in table.batches([image], images=True):
        for position, data in enumerate(image_bytes(batch, image, where, row), row):
            number, label = labels.take()
            if rows(number):
                yield label, data, f"{where}: the image in row {position}"


class _Labels:
    """The rows' labels, one after another."""

    def __init__(self, table: Table, use: Use) -> None:
        self.table, self.use, self.number = table, use, -1

    def take(self) -> tuple[int, int]:
        """The next row's number, and its label."""
        self.number += 1
        if self.number == len(self.use.labels):
            raise DataError(f"{self.table.name}: the table changed while it was read")
        return self.number, self.use.labels[self.number]


def _image_scale(table: Table, use: Use, rows: Rows) -> Scale:
    """Mean and deviation of each channel, after all images were decoded once."""
    facts = ImageFacts()
    for _, data, where in _images(table, use, rows):
        facts.add(data, where)
    return use.scale or facts.mean_and_std


def _scale(train: Opened) -> Scale | None:
    found = train.dataset
    return (tuple(found.mean), tuple(found.std)) if isinstance(found, ImageDataset) else None


def _kept(path: Path, beside: Path) -> tuple[Dataset, _Kept] | None:
    """A data set that is in the cache whole."""
    try:
        return open_arrow(str(path)), _KEPT.validate_json(beside.read_bytes())
    except (OSError, ValidationError, DataError):
        return None


def _text(table: Table, columns: Columns, classes: Sequence[str], count: int) -> str:
    names = ", ".join(shown(name, NAME) for name in classes[:5]) + (", ..." if len(classes) > 5 else "")
    ignored = f"; not used: {', '.join(map(repr, columns.ignored[:10]))}" if columns.ignored else ""
    kind = "images" if columns.image else "samples, no images (normalised by data.normalise only)"
    return (
        f"{table.name}: {count:,} {kind}, of {columns}; {len(classes)} classes ({names}) in column "
        f"{columns.label!r}{ignored}"
    )

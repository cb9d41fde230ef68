"""Images in tables: Parquet or Arrow IPC files with a column of images and one of labels."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from kdcl_dist.data.importers.check import Item
from kdcl_dist.data.importers.label_values import LabelValues, classes_of
from kdcl_dist.data.importers.split_files import identity_of, split_files
from kdcl_dist.data.importers.table_files import SUFFIXES, open_table
from kdcl_dist.errors import DataError, one_line

__all__ = ["Table"]

REMEDY = "; labels of -1 mark a test set without labels: name another with --test"


class Table:
    """The images of tables.

    The classes are the names in Hugging Face's metadata for whole-number labels. Without such metadata they
    are the sorted distinct values of the training set's label column.

    Args:
        source: a file, which is the training set; or a folder of files.
        image: the column of images: bytes of JPEG or PNG files, or a struct with a field `bytes`.
        label: the column of labels: whole numbers or strings.
        train: pattern of the training set's files or folders in a folder.
        test: the same for the test set; None: the first of "test*" and "val*" with a match, or no test set.

    Raises:
        DataError: files or columns are missing, damaged, of another type, or hold nulls; or two class names
            differ in their spelling only.
    """

    def __init__(
        self, source: Path, *, image: str, label: str, train: str = "train*", test: str | None = None
    ) -> None:
        self.source, self.image, self.label = source, image, label
        self.name = f"tables of {source.resolve().name!r}, columns {image!r} and {label!r}"
        self.files = split_files(source, train, test, SUFFIXES)
        files = [file for files in self.files.values() for file in files]
        for file in files:
            self._check_columns(file)
        values = {split: self._read_labels(split) for split in self.files}
        self.counts = {split: len(found) for split, found in values.items()}
        names = _names(self.files["train"][0], label)
        self.classes, self.label_of = classes_of(values, names, str(source), f"column {label!r}", REMEDY)
        self.train_labels = values["train"].labels(self.label_of)
        self.identity = identity_of(source, files, [image, label, list(self.files), self.counts])

    def items(self, split: str) -> Iterator[Item]:
        """The rows of a split's files, in the order of their names."""
        for file, start, batch in self._batches(split, [self.image, self.label]):
            images = batch.column(0)
            if pa.types.is_struct(images.type):
                images = pc.struct_field(images, "bytes")
            for row, (data, value) in enumerate(
                zip(images.to_pylist(), _values(batch.column(1)), strict=True), start
            ):
                if data is None:
                    raise DataError(f"{file}: column {self.image!r} has no image bytes in row {row}")
                yield Item(self.label_of[value], f"{file.name} row {row}", data, len(data))

    def _batches(self, split: str, columns: list[str]) -> Iterator[tuple[Path, int, pa.RecordBatch]]:
        """File, row of the first sample, and record batch."""
        for file in self.files[split]:
            row = 0
            with _reading(file), open_table(file) as table:
                for batch in table.batches(columns):
                    yield file, row, batch
                    row += len(batch)

    def _read_labels(self, split: str) -> LabelValues:
        found = LabelValues()
        for file, row, batch in self._batches(split, [self.label]):
            values = _values(batch.column(0))
            if None in values:
                raise DataError(f"{file}: column {self.label!r} is null in row {row + values.index(None)}")
            found.extend(values)
        if not len(found):
            raise DataError(f"{self.source}: the {split} files hold no rows")
        return found

    def _check_columns(self, file: Path) -> None:
        with _reading(file), open_table(file) as table:
            schema = table.schema
        for name, fits, wanted in (
            (self.image, _is_image, "bytes of JPEG or PNG files, or a struct with a field 'bytes'"),
            (self.label, _is_label, "whole numbers or strings"),
        ):
            if schema.names.count(name) != 1:
                raise DataError(f"{file}: no column {name!r}; it has {', '.join(map(repr, schema.names))}")
            if not fits(schema.field(name).type):
                raise DataError(f"{file}: column {name!r} is {schema.field(name).type}; it must be {wanted}")


@contextmanager
def _reading(file: Path) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError, ValueError, struct.error) as error:
        raise DataError(f"{file}: not Parquet or Arrow IPC, or damaged: {one_line(error)}") from error


def _is_image(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        index = kind.get_field_index("bytes")
        return index >= 0 and _is_image(kind.field(index).type)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _is_label(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_integer(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _values(column: pa.Array) -> list[Any]:
    values: list[Any] = column.to_pylist()
    return values


def _names(file: Path, label: str) -> tuple[str, ...]:
    """Class names in the metadata of Hugging Face's `datasets`; empty if there are none."""
    with _reading(file), open_table(file) as table:
        metadata = table.schema.metadata or {}
    try:
        names = json.loads(metadata[b"huggingface"])["info"]["features"][label]["names"]
    except (KeyError, TypeError, ValueError):
        return ()
    usable = isinstance(names, list) and all(isinstance(name, str) for name in names)
    return tuple(names) if usable and len(set(names)) == len(names) else ()

"""Images in tables: Parquet or Arrow IPC files with a column of images and one of labels."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from kdcl_dist.data.importers.check import Item
from kdcl_dist.data.importers.label_values import (
    LabelValues,
    check_present,
    classes_of,
    name_order,
    renumbered,
)
from kdcl_dist.data.importers.presence import real_name
from kdcl_dist.data.importers.split_files import identity_of, split_files
from kdcl_dist.data.importers.table_files import SUFFIXES, open_table
from kdcl_dist.data.sources.hugging_face import metadata_names
from kdcl_dist.errors import DataError, one_line

__all__ = ["Table"]

REMEDY = "; labels of -1 mark a test set without labels: name another with --test"


class Table:
    """The images of tables.

    The classes are the names in Hugging Face's metadata for whole-number labels; a file that numbers them
    otherwise has its labels mapped by name. Without such metadata they are the sorted distinct values of the
    training set's label column.

    Args:
        source: a file, which is the training set; or a folder of files.
        image: the column of images: bytes of JPEG or PNG files, or a struct with a field `bytes`.
        label: the column of labels: whole numbers or strings.
        train: pattern of the training set's files or folders in a folder.
        test: the same for the test set; None: the first of "test*" and "val*" with a match, or no test set.

    Raises:
        DataError: files or columns are missing, damaged, of another type, or hold nulls; two files name other
            classes; or two class names differ in their spelling only.
    """

    def __init__(
        self, source: Path, *, image: str, label: str, train: str = "train*", test: str | None = None
    ) -> None:
        self.source, self.image, self.label = source, image, label
        self.name = f"tables of {real_name(source)!r}, columns {image!r} and {label!r}"
        self.files = split_files(source, train, test, SUFFIXES)
        self.class_folders: tuple[Path, ...] = ()
        self.orders: dict[Path, list[int] | None] = {}
        files = [file for files in self.files.values() for file in files]
        names = self._class_names(files)
        values = {split: self._read_labels(split) for split in self.files}
        self.counts = {split: len(found) for split, found in values.items()}
        self.classes, self.label_of = classes_of(values, names, str(source), f"column {label!r}", REMEDY)
        self.train_labels = values["train"].labels(self.label_of)
        self.identity = identity_of(source, files, [image, label, list(self.files), self.counts])

    def items(self, split: str) -> Iterator[Item]:
        """The rows of a split's files, in the order of their names."""
        for file, start, batch in self._batches(split, [self.image, self.label]):
            images = batch.column(0)
            if pa.types.is_struct(images.type):
                images = pc.struct_field(images, "bytes")
            values = renumbered(batch.column(1).to_pylist(), self.orders.get(file))
            for row, (data, value) in enumerate(zip(images.to_pylist(), values, strict=True), start):
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
            values = batch.column(0).to_pylist()
            check_present(values, self.label, str(file), row)
            found.extend(renumbered(values, self.orders.get(file)))
        if not len(found):
            raise DataError(f"{self.source}: the {split} files hold no rows")
        return found

    def _class_names(self, files: Sequence[Path]) -> tuple[str, ...]:
        """Those of the training files' metadata, of which the labels of all files become numbers."""
        found = {file: metadata_names(self._schema(file).metadata or {}, self.label) for file in files}
        named = {file: names for file, names in found.items() if names}
        first = next(filter(named.__contains__, self.files["train"]), None)
        if first is not None:
            for file, names in named.items():
                self.orders[file] = name_order(names, named[first], str(file), str(first))
        return () if first is None else named[first]

    def _schema(self, file: Path) -> pa.Schema:
        """The columns of a file, among which are those of images and labels."""
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
        return schema


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

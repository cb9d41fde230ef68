"""Images in tables: Parquet or Arrow IPC files with a column of images and one of labels."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from kdcl_dist.data.importers.check import Item
from kdcl_dist.data.importers.class_names import check_spelling
from kdcl_dist.data.importers.table_files import open_table, table_files
from kdcl_dist.errors import DataError, one_line

__all__ = ["Table"]

#: Patterns of test files, where none is given; the first with a match counts.
TEST_PATTERNS = ("test*", "val*")


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
        self.files = _splits(source, train, test)
        for file in (file for files in self.files.values() for file in files):
            self._check_columns(file)
        self.counts, values = {}, {}
        for split in self.files:
            self.counts[split], values[split] = self._count_labels(split)
        names = _names(self.files["train"][0], label)
        known = range(len(names)) if names else sorted(values["train"])
        self.label_of = {value: label for label, value in enumerate(known)}
        self.classes = names or tuple(str(value) for value in self.label_of)
        texts = {value for found in values.values() for value in found if isinstance(value, str)}
        check_spelling(sorted(texts.union(self.classes)), str(source))
        for split, found in values.items():
            self._check_values(split, found)
        stats = [(str(f.relative_to(source)), f.stat()) for files in self.files.values() for f in files]
        seen = [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]
        identity = json.dumps([image, label, list(self.files), self.counts, seen])
        self.identity = hashlib.sha256(identity.encode()).hexdigest()

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

    def _count_labels(self, split: str) -> tuple[int, set[Any]]:
        """Number of rows, and the distinct labels."""
        count, found = 0, set()
        for file, row, batch in self._batches(split, [self.label]):
            values = _values(batch.column(0))
            if None in values:
                raise DataError(f"{file}: column {self.label!r} is null in row {row + values.index(None)}")
            count += len(values)
            found |= set(values)
        if not count:
            raise DataError(f"{self.source}: the {split} files hold no rows")
        return count, found

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

    def _check_values(self, split: str, found: set[Any]) -> None:
        unknown = sorted(value for value in found if value not in self.label_of)
        if unknown:
            raise DataError(
                f"{self.source}: the {split} files have the label {unknown[0]!r} in column {self.label!r}, "
                f"which is not one of the {len(self.classes)} classes; labels of -1 mark a test set without "
                "labels: name another with --test"
            )


def _splits(source: Path, train: str, test: str | None) -> dict[str, list[Path]]:
    if source.is_file():
        return {"train": [source]}
    if not source.is_dir():
        raise DataError(f"{source}: no such file or folder")
    found = {"train": table_files(source, train)}
    patterns = [test] if test else TEST_PATTERNS
    found["test"] = next(filter(None, (table_files(source, pattern) for pattern in patterns)), [])
    for split, pattern in (("train", train), ("test", test)):
        if not found[split] and pattern is not None:
            raise DataError(f"{source}: no .parquet or .arrow files match {pattern!r} (--{split})")
    if both := set(found["train"]) & set(found["test"]):
        raise DataError(f"{min(both)}: matches --train and --test both")
    return {split: files for split, files in found.items() if files}


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

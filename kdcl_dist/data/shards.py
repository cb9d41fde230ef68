"""The files of a data set on disk, and what all formats have in common: labels, class names, fingerprint.

Shapes: N samples.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import TypeAdapter, ValidationError

from kdcl_dist.data.arrow_file import open_table
from kdcl_dist.errors import DataError, one_line
from kdcl_dist.utils.hidden import is_hidden

__all__ = ["KEY", "ArrowFiles", "check_range", "digest_blocks", "format_of", "list_shards", "read_metadata"]

KEY = b"kdcl"


class _Info(Protocol):
    """The metadata of a data set."""

    @property
    def classes(self) -> tuple[str, ...]: ...

    def schema(self) -> pa.Schema: ...


InfoT = TypeVar("InfoT", bound=_Info)


class ArrowFiles(ABC, Generic[InfoT]):
    """A data set on disk, opened memory-mapped; a class derived from this one reads its samples.

    Args:
        path: an `.arrow` file, or a folder of them.

    Raises:
        DataError: it is missing, damaged, or not of the format.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.files = list_shards(Path(path))
        self.tables = [open_table(file) for file in self.files]
        self.info: InfoT = self.read_info(self.files[0], self.tables[0].schema)
        parts = list(zip(self.files, self.tables, strict=True))
        for file, table in parts:
            self._check_columns(file, table.schema)
        labels = [_labels(file, table, len(self.classes)) for file, table in parts]
        self.labels: npt.NDArray[np.int64] = np.concatenate(labels)
        if not len(self.labels):
            raise DataError(f"{path}: the data set has no samples")

    @staticmethod
    @abstractmethod
    def read_info(file: Path, schema: pa.Schema) -> InfoT:
        """The metadata of a file; `DataError` if it is of no use."""

    def __len__(self) -> int:
        return len(self.labels)

    def __reduce__(self) -> tuple[type[ArrowFiles[InfoT]], tuple[str]]:
        return type(self), (self.path,)  # another process maps the same file instead of receiving a copy

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names."""
        return self.info.classes

    @cached_property
    def fingerprint(self) -> str:
        """A SHA-256 over metadata, all labels, file sizes and 64 blocks of each file's bytes.

        Cheap for any size; equal for equal copies on other hosts, and different for other data.
        """
        digest = hashlib.sha256(json.dumps(asdict(self.info), sort_keys=True).encode())  # type: ignore[call-overload]
        digest.update(self.labels.tobytes())
        for file in self.files:
            digest_blocks(digest, file)
        return digest.hexdigest()

    def _check_columns(self, file: Path, schema: pa.Schema) -> None:
        # Whole numbers may be written as such: not the text is compared, but what it means.
        expected = self.info.schema()
        if not schema.equals(expected) or self.read_info(file, schema) != self.info:
            raise DataError(
                f"{file}: columns or metadata differ from the data set's: found {_brief(schema)}, "
                f"expected {_brief(expected)}; all shards must be of one import"
            )


def list_shards(path: Path) -> list[Path]:
    """The files of a data set, in the order of their names; `DataError` if there are none."""
    try:
        return _list_shards(path)
    except (OSError, ValueError) as error:  # a name too long, a null byte, a folder that may not be read
        raise DataError(f"{str(path)[:200]}: cannot be opened: {one_line(error)[:200]}") from error


def _list_shards(path: Path) -> list[Path]:
    if path.is_dir():
        if not (files := sorted(file for file in path.glob("*.arrow") if not is_hidden(file.name))):
            raise DataError(f"{path}: the folder holds no .arrow file; write one with `kdcl data import`")
        return files
    if not path.exists():
        raise DataError(f"{path}: no such file; write a data set with `kdcl data import`")
    return [path]


def format_of(file: Path, schema: pa.Schema) -> Any:
    """The format that a file's metadata names; `DataError` if there is none."""
    try:
        return json.loads(_metadata(file, schema)).get("format")
    except (ValueError, AttributeError, RecursionError) as error:
        raise _unreadable(file, one_line(error)) from error


def read_metadata(adapter: TypeAdapter[InfoT], format: int, file: Path, schema: pa.Schema) -> InfoT:
    """The metadata of a file of a format, without any check of its content.

    Raises:
        DataError: there is none, it is of another format, or its fields are of other types.
    """
    if (found := format_of(file, schema)) != format:
        raise DataError(f"{file}: data set format {found!r}; this version reads format {format} here")
    try:
        info = adapter.validate_json(_metadata(file, schema), strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(repr(part)[:60] for part in first["loc"])
        raise _unreadable(file, f"{where}: {first['msg']}") from error
    if len(set(info.classes)) != len(info.classes):
        raise DataError(f"{file}: its 'kdcl' metadata names a class twice")
    return info


def check_range(where: str, labels_N: npt.NDArray[Any], classes: int) -> None:
    """Raise `DataError` if a label is no index into the list of class names."""
    outside = np.flatnonzero((labels_N < 0) | (labels_N >= classes))
    if len(outside):
        row = int(outside[0])
        raise DataError(
            f"{where}: the label in row {row} is {int(labels_N[row])}, but there are {classes} classes, "
            f"so labels go from 0 to {classes - 1} ({len(outside)} labels are outside)"
        )


def _metadata(file: Path, schema: pa.Schema) -> bytes:
    if KEY not in (schema.metadata or {}):
        raise DataError(f"{file}: an Arrow file, but not a data set: its schema has no 'kdcl' metadata")
    text: bytes = schema.metadata[KEY]
    return text


def _unreadable(file: Path, reason: str) -> DataError:
    return DataError(f"{file}: its 'kdcl' metadata cannot be read: {reason}")


def _brief(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name} {field.type}" for field in schema)


def _labels(file: Path, table: pa.Table, classes: int) -> npt.NDArray[np.int64]:
    if any(column.null_count for column in table.columns):
        raise DataError(f"{file}: it has rows without {' or '.join(table.column_names)}")
    # to_numpy() would import pandas into every process.
    chunks: Sequence[Any] = [np.from_dlpack(chunk) for chunk in table["label"].chunks if len(chunk)]
    labels_N: npt.NDArray[np.int64] = np.concatenate([*chunks, np.array([], np.int32)]).astype(np.int64)
    check_range(str(file), labels_N, classes)
    return labels_N


def digest_blocks(digest: Any, file: Path, blocks: int = 64, block_bytes: int = 65536) -> None:
    """Add the size and some blocks of a file to a digest."""
    size = file.stat().st_size
    digest.update(size.to_bytes(8, "little"))
    with file.open("rb") as stream:
        for number in range(blocks):
            stream.seek(size * number // blocks)
            digest.update(stream.read(block_bytes))

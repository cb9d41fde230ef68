"""Data sets of samples that are no images, as Arrow IPC files: format 2, memory-mapped as that of images is.

Columns, of as many chunks as there are record batches, without nulls:

    label   int32
    one for each tensor of a sample, by its name: its numbers in row-major order, as a fixed-size list where
            all samples have one shape, or as a list where the first axis differs; a bool is a uint8 of 0 or 1

The schema's metadata holds, under the key `kdcl`, the JSON of `SampleInfo`. A sample's id is its row number.

Shapes: N samples, F features of a last axis.
"""

from __future__ import annotations

import json
import math
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from pydantic import ConfigDict, TypeAdapter
from torch import Tensor

from kdcl_dist.data.arrow_file import open_table
from kdcl_dist.data.arrow_images import FORMAT as IMAGES
from kdcl_dist.data.arrow_images import ArrowDataset
from kdcl_dist.data.layout import Column, Kind, Layout
from kdcl_dist.data.samples import ALONE, Sample
from kdcl_dist.data.shards import KEY, ArrowFiles, format_of, list_shards, read_metadata
from kdcl_dist.errors import DataError

__all__ = ["DTYPES", "FORMAT", "ArrowSamples", "SampleInfo", "flat", "is_possible", "open_arrow"]

FORMAT = 2
#: The type in a file of each type of a tensor; that of bool is the one that differs.
DTYPES: dict[str, pa.DataType] = {
    **{"bool": pa.uint8(), "uint8": pa.uint8(), "int8": pa.int8(), "int16": pa.int16(), "int32": pa.int32()},
    **{"int64": pa.int64(), "float16": pa.float16(), "float32": pa.float32(), "float64": pa.float64()},
}
#: NumPy's type of each.
NUMPY = {kind: np.dtype(name) for name, kind in DTYPES.items() if name != "bool"}
#: Numbers of one sample that Arrow's offsets of 32 bits can address.
LARGEST = 2**31
MOST_AXES = 8


@dataclass(frozen=True)
class SampleInfo:
    """The metadata of a data set of samples.

    Attributes:
        classes: class names; a label is an index into this list.
        kind: of a sample: a tensor alone, a tuple or a dict of tensors.
        columns: name, type and shape of each tensor; the first number of a shape is None where it differs
            from sample to sample.
        mean, std: F numbers of each floating-point tensor, by its name; empty if they are not known.
        source, license: origin of the data, and terms of use.
    """

    classes: tuple[str, ...]
    kind: Kind
    columns: tuple[Column, ...]
    mean: dict[str, tuple[float, ...]] = field(default_factory=dict)
    std: dict[str, tuple[float, ...]] = field(default_factory=dict)
    source: str = ""
    license: str = ""
    format: int = FORMAT

    __pydantic_config__ = ConfigDict(extra="forbid", allow_inf_nan=False)

    @property
    def layout(self) -> Layout:
        """The layout of all samples."""
        return Layout(self.kind, self.columns)

    def schema(self) -> pa.Schema:
        """The Arrow schema of files with this content."""
        columns = [(column.name, _arrow_type(column)) for column in self.columns]
        metadata = {KEY: json.dumps(asdict(self), sort_keys=True).encode()}
        return pa.schema([("label", pa.int32()), *columns], metadata=metadata)


_INFO = TypeAdapter(SampleInfo)


class ArrowSamples(ArrowFiles[SampleInfo]):
    """Samples on disk, opened memory-mapped.

    Args:
        path: an `.arrow` file, or a folder of them.

    Raises:
        DataError: it is missing, damaged, or not of the format above.
    """

    def __init__(self, path: str) -> None:
        super().__init__(path)
        lengths = [len(chunk) for table in self.tables for chunk in table["label"].chunks if len(chunk)]
        self._starts: list[int] = np.cumsum([0, *lengths]).tolist()
        self._columns = {
            column.name: list(self._chunks(position, column))
            for position, column in enumerate(self.info.columns, 1)
        }

    @staticmethod
    def read_info(file: Path, schema: pa.Schema) -> SampleInfo:
        """The metadata of a file; `DataError` if it is of no use."""
        info = read_metadata(_INFO, FORMAT, file, schema)
        if reason := _contradiction(info):
            raise DataError(f"{file}: its 'kdcl' metadata {reason}")
        return info

    @property
    def mean(self) -> dict[str, tuple[float, ...]]:
        """Mean of each feature of the floating-point tensors, by their names; empty if not known."""
        return self.info.mean

    @property
    def std(self) -> dict[str, tuple[float, ...]]:
        """Standard deviation of each feature of the floating-point tensors, as `mean`."""
        return self.info.std

    def sample(self, index: int) -> Sample:
        """One sample, a copy that the caller may change."""
        chunk = bisect_right(self._starts, index) - 1
        row = index - self._starts[chunk]
        tensors = {name: chunks[chunk].tensor(row) for name, chunks in self._columns.items()}
        if self.info.kind == "dict":
            return tensors
        return tensors[ALONE] if self.info.kind == "tensor" else tuple(tensors.values())

    def _chunks(self, position: int, column: Column) -> Iterator[_Chunk]:
        for file, table in zip(self.files, self.tables, strict=True):
            for chunk in filter(len, table.column(position).chunks):
                try:
                    yield _Chunk(chunk, column)
                except ValueError as error:
                    raise DataError(f"{file}: {error}; write it again") from error


class _Chunk:
    """The rows of one column of a record batch, mapped without copying.

    Raises:
        ValueError: the numbers of a row do not fill the shape, or one is null.
    """

    def __init__(self, chunk: pa.Array, column: Column) -> None:
        self.dtype = np.dtype(column.dtype)
        inner = [side or 1 for side in column.shape[1:]]
        self.size = size = math.prod(inner)
        if chunk.values.null_count:
            raise ValueError(f"column {column.name!r} has rows with a null in them")
        numbers = flat(chunk.values)
        self.offsets: npt.NDArray[np.int32] | None = None
        if None in column.shape[:1]:
            offsets = np.frombuffer(chunk.buffers()[1], np.int32)[chunk.offset :][: len(chunk) + 1]
            if np.any(offsets % size):
                raise ValueError(f"column {column.name!r} has rows that do not fill the shape {column.shape}")
            self.offsets = offsets
            self.rows = numbers[: len(numbers) // size * size].reshape(-1, *inner)
        else:
            shape = [side or 1 for side in column.shape]
            count = math.prod(shape)
            self.rows = numbers[chunk.offset * count :][: len(chunk) * count].reshape(len(chunk), *shape)

    def tensor(self, row: int) -> Tensor:
        """A copy of one row."""
        where: int | slice = row
        if self.offsets is not None:  # in numbers; they stay as they are in the file, as the numbers do
            where = slice(self.offsets[row] // self.size, self.offsets[row + 1] // self.size)
        return torch.from_numpy(np.array(self.rows[where], self.dtype))


def open_arrow(path: str) -> ArrowDataset | ArrowSamples:
    """Open the data set at a path, in the format that its first file names.

    Raises:
        DataError: as `ArrowDataset` and `ArrowSamples`.
    """
    first = list_shards(Path(path))[0]
    found = format_of(first, open_table(first).schema)
    if found not in (IMAGES, FORMAT):
        raise DataError(
            f"{first}: data set format {found!r}; this version reads formats {IMAGES} and {FORMAT}"
        )
    return ArrowDataset(path) if found == IMAGES else ArrowSamples(path)


def _arrow_type(column: Column) -> pa.DataType:
    fixed = None not in column.shape
    return pa.list_(DTYPES[column.dtype], math.prod(side or 1 for side in column.shape) if fixed else -1)


def flat(values: pa.Array) -> npt.NDArray[Any]:
    """The numbers of an array, without copying."""
    dtype = NUMPY[values.type]  # Arrow's own answer would import pandas into every process
    if not len(values):
        return np.empty(0, dtype)
    return np.frombuffer(values.buffers()[1], dtype)[values.offset :][: len(values)]


def _contradiction(info: SampleInfo) -> str:
    """What is wrong with metadata whose types are right; empty if nothing is."""
    names = [column.name for column in info.columns]
    expected = {"tensor": [ALONE], "tuple": [str(position) for position in range(len(names))], "dict": names}
    if not names or names != expected[info.kind] or len({*names, "label"}) != len(names) + 1:
        return f"names columns {', '.join(map(repr, names[:10]))} for samples of kind {info.kind}"
    for column in info.columns:
        if not is_possible(column):
            return f"names a column that cannot be: {column}"
    floating = {column.name: column.features for column in info.columns if column.is_floating}
    for found in filter(None, (info.mean, info.std)):
        if {name: len(values) for name, values in found.items()} != floating:
            return "must have a mean and a std for each feature of the floating-point columns, or none"
    if bool(info.mean) != bool(info.std) or any(each < 0 for values in info.std.values() for each in values):
        return "must have a std of at least 0 for each mean"
    return ""


def is_possible(column: Column) -> bool:
    """Whether a column can be written: its type, and sides above 0 of which the first alone may be None."""
    sides = [1 if side is None else side for side in column.shape]
    return (
        column.dtype in DTYPES
        and len(sides) <= MOST_AXES
        and None not in column.shape[1:]
        and min(sides, default=1) > 0
        and math.prod(sides) < LARGEST
    )

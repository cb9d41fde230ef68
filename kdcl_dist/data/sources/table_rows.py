"""The rows of a table as samples: tensors of numbers and of lists, or bytes of images.

Shapes: B rows, D columns of numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from kdcl_dist.data.importers.label_values import check_present
from kdcl_dist.data.samples import Sample
from kdcl_dist.data.sources.table_columns import NUMBERS, Columns
from kdcl_dist.errors import DataError

__all__ = ["image_bytes", "label_values", "samples"]


def label_values(batch: pa.RecordBatch, label: str, where: str, row: int) -> list[Any]:
    """The labels of a batch whose first row is `row`; `DataError` if one is null or empty."""
    values: list[Any] = batch.column(label).to_pylist()
    check_present(values, label, where, row)
    return values


def image_bytes(batch: pa.RecordBatch, image: str, where: str, row: int) -> list[bytes]:
    """The files of images of a batch whose first row is `row`; `DataError` if one is null."""
    column = batch.column(image)
    if pa.types.is_struct(column.type):
        column = pc.struct_field(column, "bytes")
    _check_nulls(column, image, where, row)
    found: list[bytes] = column.to_pylist()
    return found


def samples(batch: pa.RecordBatch, columns: Columns, where: str, row: int) -> Iterator[Sample]:
    """The samples of a batch: a tensor alone, or a dict where there are several.

    Args:
        batch: the rows.
        columns: those of numbers become one float32 vector (D,), each list a tensor of int64 or float32.
        where: the file, for messages.
        row: number of the first row in it.

    Raises:
        DataError: a value is null, NaN or infinite, or a list is empty.
    """
    tensors: dict[str, Sequence[Tensor]] = {}
    if columns.numbers:
        tensors[NUMBERS] = _vectors(batch, columns.numbers, where, row)
    for name, whole in columns.lists.items():
        tensors[name] = _lists(batch.column(name), name, whole, where, row)
    for parts in zip(*tensors.values(), strict=True):
        yield parts[0] if len(tensors) == 1 else dict(zip(tensors, parts, strict=True))


def _vectors(batch: pa.RecordBatch, names: Sequence[str], where: str, row: int) -> Sequence[Tensor]:
    out_BD = np.empty((len(batch), len(names)), np.float32)
    for position, name in enumerate(names):
        _check_nulls(batch.column(name), name, where, row)
        out_BD[:, position] = np.from_dlpack(pc.cast(batch.column(name), pa.float32(), safe=False))
        _check_finite(out_BD[:, position], name, where, row)
    return torch.from_numpy(out_BD).unbind()


def _lists(column: pa.Array, name: str, whole: bool, where: str, row: int) -> Sequence[Tensor]:
    _check_nulls(column, name, where, row)
    lengths_B = np.asarray(np.from_dlpack(pc.cast(pc.list_value_length(column), pa.int64())), np.int64)
    if not lengths_B.all():
        raise DataError(f"{where}: column {name!r} has an empty list in row {row + int(lengths_B.argmin())}")
    flat = pc.list_flatten(column)
    owners = np.repeat(np.arange(len(column)), lengths_B)
    if flat.null_count:
        first = int(owners[flat.is_null().index(True).as_py()])
        raise DataError(f"{where}: column {name!r} has a list with a null in row {row + first}")
    numbers = np.from_dlpack(pc.cast(flat, pa.int64() if whole else pa.float32(), safe=whole)).copy()
    if not whole and not np.isfinite(numbers).all():
        first = int(owners[int(np.argmin(np.isfinite(numbers)))])
        raise DataError(f"{where}: column {name!r} has NaN or infinite numbers in row {row + first}")
    return torch.split(torch.from_numpy(numbers), lengths_B.tolist())


def _check_nulls(column: pa.Array, name: str, where: str, row: int) -> None:
    if column.null_count:
        first = row + int(column.is_null().index(True).as_py())
        raise DataError(f"{where}: column {name!r} is null in row {first}: fill it, or leave the row out")


def _check_finite(values_B: npt.NDArray[np.float32], name: str, where: str, row: int) -> None:
    if not (finite_B := np.isfinite(values_B)).all():
        first = row + int(finite_B.argmin())
        raise DataError(
            f"{where}: column {name!r} is NaN, infinite or beyond float32 in row {first}: fill it, or leave "
            "the row out"
        )

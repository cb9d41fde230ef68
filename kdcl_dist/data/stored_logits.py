"""Stored logits: what a network answers to the samples of a data set, as an Arrow IPC file, memory-mapped.

Columns, without nulls; rows are in any order, and each pair of id and view occurs once:

    id       int64: the sample's id, its row number in the data set
    view     int32: 0 to K - 1 are the training views, -1 is the test view
    logits   fixed-size list of float32 or float16: of all classes, or the `top_k` largest
    classes  with `top_k`: fixed-size list of int32, the classes of these logits
    rest     with `top_k`: the logit of each other class, so that their total probability stays

The schema's metadata holds, under the key `kdcl`, the JSON of `LogitsInfo`. docs/stored-logits.md is for
writers of such files.

Shapes: R rows, B samples, C classes, L stored logits of a row: C, or `top_k`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from pydantic import ConfigDict, TypeAdapter
from torch import Tensor

from kdcl_dist.data.arrow_file import open_table
from kdcl_dist.data.arrow_samples import flat
from kdcl_dist.data.shards import KEY, digest_blocks, format_of, read_metadata
from kdcl_dist.errors import DataError

__all__ = ["FORMAT", "TEST_VIEW", "LogitsInfo", "StoredLogits"]

FORMAT = 3
#: The number of the test view.
TEST_VIEW = -1
#: Rows that `StoredLogits.check` reads at a time.
CHECKED_ROWS = 4096

Array = npt.NDArray[Any]
Ids = npt.NDArray[np.int64]


@dataclass(frozen=True)
class LogitsInfo:
    """The metadata of a file.

    Attributes:
        classes: names of the data set's classes, in the order of the logits.
        data: fingerprint of the data set.
        samples: of the data set; ids are below this number.
        network: fingerprint of the network's weights; empty if it is not known.
        source: the network in words.
        views: K, the training views of a sample; 0: the file has the test view only.
        seed: of the training views; None: it is not known.
        augment: the transforms of the training views, as a recipe has them.
        top_k: stored logits of a row; None: those of all classes.
        dtype: of the logits.
    """

    classes: tuple[str, ...]
    data: str
    samples: int
    network: str = ""
    source: str = ""
    views: int = 0
    seed: int | None = None
    augment: tuple[dict[str, Any], ...] = ()
    top_k: int | None = None
    dtype: Literal["float32", "float16"] = "float32"
    format: int = FORMAT

    __pydantic_config__ = ConfigDict(extra="forbid", allow_inf_nan=False)

    @property
    def length(self) -> int:
        """L, the stored logits of a row."""
        return len(self.classes) if self.top_k is None else self.top_k

    @property
    def row_bytes(self) -> int:
        """The bytes of a row."""
        size = np.dtype(self.dtype).itemsize
        return 12 + size * self.length + (0 if self.top_k is None else 4 * self.top_k + size)

    def schema(self) -> pa.Schema:
        """The Arrow schema of files with this content."""
        kind = pa.float32() if self.dtype == "float32" else pa.float16()
        columns = [("id", pa.int64()), ("view", pa.int32()), ("logits", pa.list_(kind, self.length))]
        if self.top_k is not None:
            columns += [("classes", pa.list_(pa.int32(), self.top_k)), ("rest", kind)]
        metadata = {KEY: json.dumps(asdict(self), sort_keys=True).encode()}
        return pa.schema(columns, metadata=metadata)

    @property
    def seen(self) -> str:
        """The views in words."""
        if not self.views:
            return "the test view"
        return f"{self.views} training view{'s' * (self.views > 1)} and the test view"

    def view_of(self, epoch: int) -> int:
        """The number of the view whose logits an epoch takes."""
        return epoch % self.views if self.views else TEST_VIEW


_INFO = TypeAdapter(LogitsInfo)


class _Chunk(NamedTuple):
    """The logits of a record batch: (R, L), and with `top_k` classes (R, L) and rest (R,)."""

    logits: Array
    classes: Array | None
    rest: Array | None

    def at(self, rows_B: Array) -> _Chunk:
        """Some of the rows, a copy."""
        more = (None if column is None else column[rows_B] for column in (self.classes, self.rest))
        return _Chunk(self.logits[rows_B], *more)


class StoredLogits:
    """A file of stored logits, opened memory-mapped.

    Args:
        path: of the file.

    Raises:
        DataError: it is missing, damaged, or not of the format above. Each row is checked when it is read.
    """

    def __init__(self, path: str) -> None:
        self.path, file = path, Path(path)
        table = open_table(file, "write it with `kdcl logits`")
        self.info = _read_info(file, table.schema)
        if any(column.null_count for column in table.columns):
            raise DataError(f"{path}: it has rows with a null in them")
        batches = [batch for batch in table.to_batches() if len(batch)]
        self._chunks = [self._chunk(batch) for batch in batches]
        self._starts: Array = np.cumsum([0, *map(len, batches)])
        ids_R, views_R = (
            np.concatenate([np.empty(0, np.int64), *(flat(batch[name]) for batch in batches)])
            for name in ("id", "view")
        )
        self._check_keys(ids_R, views_R)
        keys_R = self._keys(ids_R, views_R)
        self._order: Array = keys_R.argsort(kind="stable")
        self._sorted_keys: Array = keys_R[self._order]
        if len(twice := np.flatnonzero(self._sorted_keys[1:] == self._sorted_keys[:-1])):
            row = self._order[twice[0]]
            raise DataError(f"{path}: it has sample {ids_R[row]}, view {views_R[row]}, more than once")

    def __len__(self) -> int:
        return len(self._order)

    @cached_property
    def fingerprint(self) -> str:
        """A SHA-256 over metadata, the file's size and 64 blocks of its bytes."""
        digest = hashlib.sha256(json.dumps(asdict(self.info), sort_keys=True).encode())
        digest_blocks(digest, Path(self.path))
        return digest.hexdigest()

    def missing(self, ids_B: Ids, view: int) -> Ids:
        """Those of the samples of which the file has no logits of a view."""
        return ids_B[~self._find(ids_B, view)[1]]

    def rows(self, ids_B: Ids, view: int) -> tuple[Tensor, Tensor]:
        """The logits of some samples, float32 (B, C), and of which there are any, bool (B,).

        Raises:
            DataError: a value is damaged: no finite number, or a class that does not exist or occurs twice.
        """
        row_B, found_B = self._find(ids_B, view)
        logits_BC = torch.zeros(len(ids_B), len(self.info.classes))
        chunk_B = np.searchsorted(self._starts, row_B, side="right") - 1
        for number in np.unique(chunk_B[found_B]).tolist():
            here = np.flatnonzero(found_B & (chunk_B == number))
            part = self._chunks[number].at(row_B[here] - self._starts[number])
            self._check_rows(part, ids_B[here])
            logits_BC[torch.from_numpy(here)] = self._unpacked(part)
        return logits_BC, torch.from_numpy(found_B)

    def check(self) -> None:
        """Read all rows once; errors as of `rows`."""
        for ids, view in self._blocks():
            self.rows(ids, view)

    def _blocks(self) -> Iterator[tuple[Ids, int]]:
        """The ids of all rows, some of one view at a time."""
        ids_R, views_R = self._sorted_keys % self.info.samples, self._sorted_keys // self.info.samples - 1
        for view in np.unique(views_R).tolist():
            ids = ids_R[views_R == view]
            for start in range(0, len(ids), CHECKED_ROWS):
                yield ids[start : start + CHECKED_ROWS], view

    def _keys(self, ids: Ids, views: Ids | int) -> Array:
        """One number for each pair of id and view."""
        keys: Array = (np.asarray(views) + 1) * self.info.samples + ids
        return keys

    def _find(self, ids_B: Ids, view: int) -> tuple[Array, npt.NDArray[np.bool_]]:
        """The row of each sample, and whether there is one."""
        if not len(self):
            return np.zeros(len(ids_B), np.int64), np.zeros(len(ids_B), bool)
        keys_B = self._keys(ids_B, view)
        place_B = np.minimum(self._sorted_keys.searchsorted(keys_B), len(self) - 1)
        inside_B = (ids_B >= 0) & (ids_B < self.info.samples)
        return self._order[place_B], (self._sorted_keys[place_B] == keys_B) & inside_B

    def _chunk(self, batch: pa.RecordBatch) -> _Chunk:
        lists = {name: _numbers(self.path, batch, name, self.info.length) for name in batch.schema.names[2:4]}
        rest = None if self.info.top_k is None else flat(batch["rest"])
        return _Chunk(lists["logits"], lists.get("classes"), rest)

    def _unpacked(self, part: _Chunk) -> Tensor:
        """The logits (B, C): those that are stored, and for each other class the share of the rest."""
        logits = torch.from_numpy(part.logits).float()
        if part.classes is None or part.rest is None:
            return logits
        rest_BC = torch.from_numpy(part.rest).float()[:, None].repeat(1, len(self.info.classes))
        return rest_BC.scatter_(1, torch.from_numpy(part.classes).long(), logits)

    def _check_keys(self, ids_R: Ids, views_R: Ids) -> None:
        for name, values_R, low, high in (
            ("id", ids_R, 0, self.info.samples),
            ("view", views_R, TEST_VIEW, self.info.views),
        ):
            if len(outside := np.flatnonzero((values_R < low) | (values_R >= high))):
                row = outside[0]
                raise DataError(
                    f"{self.path}: row {row} has {name} {values_R[row]}, and its metadata has {name}s from "
                    f"{low} to {high - 1}"
                )

    def _check_rows(self, part: _Chunk, ids_B: Ids) -> None:
        bad_B = ~np.isfinite(part.logits).all(axis=1)
        if part.classes is not None and part.rest is not None:
            classes_BL = np.sort(part.classes, axis=1)
            bad_B |= (classes_BL[:, 0] < 0) | (classes_BL[:, -1] >= len(self.info.classes))
            bad_B |= (classes_BL[:, 1:] == classes_BL[:, :-1]).any(axis=1) | ~np.isfinite(part.rest)
        if bad_B.any():
            raise DataError(
                f"{self.path}: the logits of sample {ids_B[bad_B][0]} are damaged: one is not finite, or "
                "a class does not exist or occurs twice; write the file again with `kdcl logits`"
            )


def _numbers(path: str, batch: pa.RecordBatch, name: str, length: int) -> Array:
    """The numbers (R, L) of a column of lists, without copying."""
    column = batch[name]
    if column.values.null_count:
        raise DataError(f"{path}: column {name!r} has rows with a null in them")
    numbers = flat(column.values)[column.offset * length :]
    return numbers[: len(batch) * length].reshape(len(batch), length)


def _read_info(file: Path, schema: pa.Schema) -> LogitsInfo:
    """The metadata of a file; `DataError` if it is of no use."""
    if (found := format_of(file, schema)) != FORMAT:
        raise DataError(f"{file}: no file of stored logits, but a data set of format {found!r}")
    info = read_metadata(_INFO, FORMAT, file, schema)
    most = len(info.classes)
    sizes = {"samples": (info.samples, 1, 1 << 40), "views": (info.views, 0, 1 << 20)}
    sizes |= {"classes": (most, 2, 1 << 24), "top_k": (info.length, 1, most)}
    for name, (value, low, high) in sizes.items():
        if not low <= value <= high:
            raise DataError(f"{file}: its 'kdcl' metadata has {name} {value}, which must be {low} to {high}")
    if not schema.equals(info.schema()):
        raise DataError(
            f"{file}: its columns are not those of its metadata: have {', '.join(map(str, schema))}, need "
            f"{', '.join(map(str, info.schema()))}"
        )
    return info

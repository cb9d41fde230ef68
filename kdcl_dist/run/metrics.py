"""The metrics of a run: one long table, in one Parquet file for each epoch.

Columns: student (or "ensemble"), epoch, step, split (train, holdout, val, test), name, value. In tests of
averaged weights "/ema" follows the student. Each epoch's file is written whole: a resumed run overwrites the
epochs that it repeats, and never doubles a row.

Shapes: B samples, C classes.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from torch import Tensor

from kdcl_dist.config.recipe import Recipe
from kdcl_dist.data.parquet_file import open_parquet, unfolded_limit
from kdcl_dist.errors import RunFolderError, one_line
from kdcl_dist.run.events import ENSEMBLE
from kdcl_dist.run.storage import Folder

__all__ = [
    "BEST",
    "BINS",
    "EMA",
    "ENSEMBLE",
    "SCHEMA",
    "MetricsTable",
    "Scores",
    "averages_of",
    "read_epoch",
    "read_metrics",
    "recorded_epochs",
]

SCHEMA = pa.schema(
    [
        ("student", pa.string()),
        ("epoch", pa.int32()),
        ("step", pa.int64()),
        ("split", pa.string()),
        ("name", pa.string()),
        ("value", pa.float64()),
    ]
)
#: Columns of text.
TEXTS = ["student", "split", "name"]
#: Test results of averaged weights have this after a student's name, or the ensemble's.
EMA = "/ema"
#: The ending of a name in results where they are of the student's best epoch.
BEST = "/best"
#: Bins of the metrics `staleness/BIN`: ages in steps.
BINS = ("0", "1-3", "4-15", "16-63", "64-255", "256-1023", "1024-4095", "4096-up")


@dataclass
class Scores:
    """Sums over samples: cross-entropy, and counts of samples whose class ranks first, or in the top five."""

    samples: int = 0
    loss: float = 0.0
    top1: int = 0
    top5: int = 0

    def add(self, log_probabilities_BC: Tensor, labels_B: Tensor) -> None:
        """Add a batch. Among equal scores, the lower class number ranks first."""
        self.loss -= float(self.add_ranks(log_probabilities_BC, labels_B).sum(dtype=torch.float64))

    def add_ranks(self, scores_BC: Tensor, labels_B: Tensor) -> Tensor:
        """Add a batch without its loss, given as logits or log-probabilities; returns those of the labels."""
        own_B1 = scores_BC.gather(1, labels_B[:, None])
        rank_B = (scores_BC > own_B1).sum(dim=1)
        ties_BC = scores_BC == own_B1
        if int(ties_BC.sum()) > len(labels_B):  # more ties than each label with itself
            classes_C = torch.arange(scores_BC.shape[1], device=labels_B.device)
            rank_B += (ties_BC & (classes_C < labels_B[:, None])).sum(dim=1)
        self.samples += len(labels_B)
        self.top1 += int((rank_B < 1).sum())
        self.top5 += int((rank_B < 5).sum())
        return own_B1

    def add_logits(self, logits_BC: Tensor, labels_B: Tensor) -> None:
        """Add a batch given as logits."""
        self.add(F.log_softmax(logits_BC.float(), dim=1), labels_B)

    def values(self) -> dict[str, float]:
        """loss: mean cross-entropy in nats; top1 and top5: shares from 0 to 1."""
        count = max(self.samples, 1)
        return {"loss": self.loss / count, "top1": self.top1 / count, "top5": self.top5 / count}


class MetricsTable:
    """Collects the rows of the current epoch and writes them at its end.

    Attributes:
        unwritten: content of finished files that are not on the storage yet, by name; a part of the
            checkpoint.
    """

    def __init__(self, run: Folder) -> None:
        self.run = run
        self.unwritten: dict[str, bytes] = {}
        self._reset()

    def add(self, student: str, epoch: int, step: int, split: str, values: Mapping[str, float]) -> None:
        """Add one row for each value. The rows are made when they are asked for, not while students wait."""
        self._added.append((student, epoch, step, split, dict(values)))

    def _make_rows(self) -> None:
        for student, epoch, step, split, values in self._added:
            for name, value in values.items():
                self.rows.append((student, epoch, step, split, name, value))
                total, count = self._sums.get((student, split, name), (0.0, 0))
                self._sums[student, split, name] = total + value, count + 1
        self._added.clear()

    @property
    def epoch(self) -> int | None:
        """The epoch of the rows that are not finished; None without such."""
        first = self.rows or self._added
        return first[0][1] if first else None

    def mean(self, split: str) -> dict[str, dict[str, float]]:
        """Mean of each value over the current epoch's rows of one split: {student: {name: mean}}."""
        self._make_rows()
        means: dict[str, dict[str, float]] = defaultdict(dict)
        for (student, row_split, name), (total, count) in self._sums.items():
            if row_split == split:
                means[student][name] = total / count
        return dict(means)

    def end_epoch(self, epoch: int) -> pa.Table:
        """Finish the epoch's file, which `flush` writes, and begin the next epoch; returns the rows."""
        self._make_rows()
        table = _table(self.rows)
        self.unwritten[_file_of(epoch)] = _to_parquet(table)
        self._reset()
        return table

    def flush(self, limit_s: float) -> None:
        """Write all unwritten files.

        Args:
            limit_s: seconds for which a failing write is tried again.

        Raises:
            StorageError: a file cannot be written; the next call tries again, and nothing is lost.
        """
        for name in list(self.unwritten):
            self.run.with_limit(limit_s).write(name, self.unwritten[name])
            del self.unwritten[name]

    def copied(self) -> MetricsTable:
        """A table with the same rows and files, which stays as it is when rows are added to this one."""
        table = MetricsTable(self.run)
        table.rows, table._added, table.unwritten = self.rows[:], self._added[:], dict(self.unwritten)
        return table

    def state_dict(self) -> dict[str, Any]:
        """The rows of an unfinished epoch, and unwritten files by name; all as bytes in uint8 tensors."""
        self._make_rows()
        rows = _to_parquet(_table(self.rows))
        return {"rows": _to_tensor(rows), "unwritten": {k: _to_tensor(v) for k, v in self.unwritten.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the rows of an unfinished epoch, and unwritten files."""
        self.unwritten = {name: data.numpy().tobytes() for name, data in state["unwritten"].items()}
        # `pq.read_table` does the same, but imports pandas.
        table = pq.ParquetFile(pa.BufferReader(state["rows"].numpy().tobytes())).read(use_threads=False)
        self._reset()
        for row in table.to_pylist():
            self.add(row["student"], row["epoch"], row["step"], row["split"], {row["name"]: row["value"]})

    def _reset(self) -> None:
        self._added: list[tuple[str, int, int, str, dict[str, float]]] = []
        self.rows: list[tuple[str, int, int, str, str, float]] = []
        self._sums: dict[tuple[str, str, str], tuple[float, int]] = {}


def averages_of(recipe: Recipe) -> list[str]:
    """The names in test results of averaged weights: "student/ema" and "ensemble/ema", if there are such."""
    return [name + EMA for name in (*recipe.averaged, ENSEMBLE)] if recipe.averaged else []


def read_metrics(run: Folder) -> pa.Table:
    """All recorded rows of a run, in order of epochs.

    Raises:
        RunFolderError: a file is damaged, or has other columns than the metrics.
    """
    names = [name for name in run.names("metrics") if name.endswith(".parquet")]
    return pa.concat_tables([SCHEMA.empty_table(), *(_read_file(run, f"metrics/{name}") for name in names)])


def recorded_epochs(run: Folder) -> list[int]:
    """The epochs, from 0 on, that have a file of recorded rows."""
    found = (re.fullmatch(r"epoch-(\d+)\.parquet", name) for name in run.names("metrics"))
    return sorted(int(match[1]) for match in found if match)


def read_epoch(run: Folder, epoch: int) -> pa.Table:
    """The recorded rows of an epoch, from 0 on; errors as `read_metrics`."""
    return _read_file(run, _file_of(epoch))


def _file_of(epoch: int) -> str:
    return f"metrics/epoch-{epoch:04d}.parquet"


def _read_file(run: Folder, name: str) -> pa.Table:
    """The rows of one file, checked: columns, types, no nulls, valid text."""
    try:
        table = _read_checked(run.read(name))
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        raise RunFolderError(f"{run}/{name} cannot be read ({one_line(error)}); delete it") from None
    if nulls := [column for column in SCHEMA.names if table[column].null_count]:
        raise RunFolderError(f"{run}/{name} cannot be read (nulls in column {nulls[0]}); delete it")
    if len(table) and pc.min(table["epoch"]).as_py() < 0:
        raise RunFolderError(f"{run}/{name} cannot be read (an epoch below 0); delete it")
    return table


def _read_checked(data: bytes) -> pa.Table:
    """The table in a Parquet file of the metrics, which may come from anyone."""
    with open_parquet(pa.py_buffer(data), read_dictionary=TEXTS) as reader:
        names = reader.schema_arrow.names
        if sorted(names) != sorted(SCHEMA.names):
            raise ValueError(f"its columns are {', '.join(names[:9]) or 'none'}")
        table = reader.read(use_threads=False).select(SCHEMA.names)
    table.validate(full=True)
    texts = [chunk for name in TEXTS for chunk in table[name].chunks if pa.types.is_dictionary(chunk.type)]
    lengths = [pc.take(pc.binary_length(chunk.dictionary), chunk.indices) for chunk in texts]
    if (size := sum(pc.sum(length).as_py() or 0 for length in lengths)) > unfolded_limit(len(data)):
        raise ValueError(f"its {len(data):,} bytes would unfold to {size:,}")
    table = table.cast(SCHEMA)
    table.validate(full=True)
    return table


def _table(rows: Sequence[tuple[Any, ...]]) -> pa.Table:
    """The rows as a table. `pa.table` does the same, but imports pandas in the middle of a run."""
    columns = list(zip(*rows, strict=True)) or [()] * len(SCHEMA)
    arrays = [_array(field.type, column) for field, column in zip(SCHEMA, columns, strict=True)]
    return pa.Table.from_arrays(arrays, schema=SCHEMA)


def _array(kind: pa.DataType, values: Sequence[Any]) -> pa.Array:
    if not pa.types.is_string(kind):
        data = np.array(values, kind.to_pandas_dtype())
        return pa.Array.from_buffers(kind, len(values), [None, pa.py_buffer(data)])
    texts = [value.encode() for value in values]
    ends = np.cumsum([0, *map(len, texts)], dtype=np.int32)
    return pa.Array.from_buffers(kind, len(values), [None, pa.py_buffer(ends), pa.py_buffer(b"".join(texts))])


def _to_tensor(data: bytes) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


def _to_parquet(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    return bytes(sink.getvalue())

"""Writing stored logits: streamed to a temporary file, read back, then renamed.

    with LogitsWriter(Path("teacher.arrow"), LogitsInfo(classes, fingerprint, samples)) as writer:
        writer.add(ids_B, TEST_VIEW, logits_BC)

Shapes: B samples, C classes, L stored logits of a row.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor

from kdcl_dist.data.stored_logits import LogitsInfo, StoredLogits
from kdcl_dist.errors import DataError, one_line

__all__ = ["LogitsWriter"]

#: Bytes of a record batch, which is held in memory whole; a step's rows lie in few batches.
BATCH_BYTES = 64 << 20


class LogitsWriter:
    """Writes rows as one file, which appears when the `with` block ends without an error.

    Args:
        path: of the file; one that exists is replaced.
        info: its metadata.

    Raises:
        DataError: at the end: the file cannot be written, has no rows, or reads back otherwise.
    """

    def __init__(self, path: Path, info: LogitsInfo) -> None:
        self.path, self.info, self.schema = path, info, info.schema()
        self._part = path.with_name(f"{path.name}.part")
        self._writer: Any = None
        self._batches: list[pa.RecordBatch] = []
        self._bytes = self.rows = 0

    def __enter__(self) -> LogitsWriter:
        with self._naming_path():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._writer = pa.ipc.new_file(str(self._part), self.schema)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            with self._naming_path():
                if kind is None:
                    self._flush()
                self._writer.close()
                if kind is None:
                    self._finish()
        finally:
            with contextlib.suppress(OSError):
                self._part.unlink(missing_ok=True)

    def add(self, ids_B: npt.NDArray[np.int64], view: int, logits_BC: Tensor) -> None:
        """Add rows of one view.

        Args:
            ids_B: of the samples.
            view: its number.
            logits_BC: before any temperature.

        Raises:
            DataError: a logit is not finite, or too large for 16 bits; or the numbers of classes differ.
        """
        if logits_BC.shape != (len(ids_B), len(self.info.classes)):
            raise DataError(
                f"{self.path}: logits of shape {tuple(logits_BC.shape)} for {len(ids_B)} samples of "
                f"{len(self.info.classes)} classes"
            )
        views_B = np.full(len(ids_B), view, np.int32)
        arrays = [
            pa.array(ids_B, pa.int64()),
            pa.array(views_B),
            *self._columns(ids_B, logits_BC.float().cpu()),
        ]
        batch = pa.record_batch(arrays, schema=self.schema)
        self._batches.append(batch)
        self._bytes, self.rows = self._bytes + batch.nbytes, self.rows + len(ids_B)
        if self._bytes >= BATCH_BYTES:
            with self._naming_path():
                self._flush()

    def _columns(self, ids_B: npt.NDArray[np.int64], logits_BC: Tensor) -> Iterator[pa.Array]:
        """The logits; with `top_k` the largest, their classes, and each other class's share of the rest."""
        if self.info.top_k is None:
            yield self._lists(ids_B, logits_BC)
            return
        logits_BL, classes_BL = logits_BC.topk(self.info.top_k, dim=1)
        yield self._lists(ids_B, logits_BL)
        classes = pa.array(classes_BL.int().numpy().reshape(-1))
        yield pa.FixedSizeListArray.from_arrays(classes, type=self.schema.field("classes").type)
        others = logits_BC.shape[1] - self.info.top_k
        rest_B = logits_BC.scatter(1, classes_BL, -math.inf).logsumexp(dim=1) - math.log(max(others, 1))
        yield self._stored(ids_B, (rest_B if others else logits_BL[:, -1])[:, None])

    def _lists(self, ids_B: npt.NDArray[np.int64], logits_BL: Tensor) -> pa.Array:
        values = self._stored(ids_B, logits_BL)
        return pa.FixedSizeListArray.from_arrays(values, type=self.schema.field("logits").type)

    def _stored(self, ids_B: npt.NDArray[np.int64], values_BL: Tensor) -> pa.Array:
        """The numbers of all rows in the file's type, one after another."""
        stored_BL = values_BL.to(torch.float16 if self.info.dtype == "float16" else torch.float32)
        bad_B = ~torch.isfinite(stored_BL).all(dim=1).numpy()
        if bad_B.any():
            raise DataError(
                f"{self.path}: a logit of sample {ids_B[bad_B][0]} is no finite number in {self.info.dtype}"
            )
        return pa.array(stored_BL.numpy().reshape(-1))

    def _flush(self) -> None:
        if self._batches:
            table = pa.Table.from_batches(self._batches, self.schema).combine_chunks()
            self._writer.write_table(table)
        self._batches, self._bytes = [], 0

    def _finish(self) -> None:
        """Read the file back, and give it its name."""
        if not self.rows:
            raise DataError(f"{self.path}: no logits were added")
        written = StoredLogits(str(self._part))
        written.check()
        if len(written) != self.rows:
            raise DataError(f"{self.path}: {self.rows} rows were written, and {len(written)} are read back")
        self._part.replace(self.path)

    @contextlib.contextmanager
    def _naming_path(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError, pa.ArrowException) as error:
            raise DataError(f"{self.path}: cannot be written: {one_line(error)}") from error

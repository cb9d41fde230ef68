"""Writing stored logits: streamed to a temporary file, read back, then renamed.

    with LogitsWriter(Path("teacher.arrow"), LogitsInfo(classes, fingerprint, samples)) as writer:
        writer.add(ids_B, TEST_VIEW, logits_BC)

Shapes: B samples, C classes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from torch import Tensor

from kdcl_dist.data.logits_columns import batch_of, columns_of
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
        columns = columns_of(logits_BC.float().cpu(), self.info.top_k, self.info.dtype)
        self._check_finite(ids_B, columns)
        batch = batch_of(self.schema, ids_B, view, columns)
        self._batches.append(batch)
        self._bytes, self.rows = self._bytes + batch.nbytes, self.rows + len(ids_B)
        if self._bytes >= BATCH_BYTES:
            with self._naming_path():
                self._flush()

    def _check_finite(self, ids_B: npt.NDArray[np.int64], columns: Mapping[str, npt.NDArray[Any]]) -> None:
        bad_B = ~np.isfinite(columns["logits"]).all(axis=1)
        if "rest" in columns:
            bad_B |= ~np.isfinite(columns["rest"])
        if bad_B.any():
            raise DataError(
                f"{self.path}: a logit of sample {ids_B[bad_B][0]} is no finite number in {self.info.dtype}"
            )

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

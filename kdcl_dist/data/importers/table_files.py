"""Parquet and Arrow IPC files as streams of record batches."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from kdcl_dist.utils.hidden import is_hidden

__all__ = ["OpenTable", "open_table", "table_files"]

SUFFIXES = (".parquet", ".arrow")
#: Images in memory at a time.
BATCH_ROWS = 16


def table_files(folder: Path, pattern: str) -> list[Path]:
    """The table files that match a pattern, and those in folders that match it; sorted, no hidden ones."""
    matches = sorted(folder.glob(pattern))
    within = [file for match in matches for file in ([match] if match.is_file() else sorted(match.iterdir()))]
    return [
        file for file in within if file.suffix.lower() in SUFFIXES and not is_hidden(file.relative_to(folder))
    ]


@dataclass
class OpenTable:
    """An open file: its schema, and the reader of its batches."""

    schema: pa.Schema
    reader: Any

    def batches(self, columns: list[str]) -> Iterator[pa.RecordBatch]:
        """The given columns, in the given order, at most `BATCH_ROWS` rows at a time."""
        for batch in self._whole(columns):
            chosen = batch.select(columns)
            for start in range(0, len(chosen), BATCH_ROWS):
                yield chosen.slice(start, BATCH_ROWS)

    def _whole(self, columns: list[str]) -> Iterator[pa.RecordBatch]:
        if isinstance(self.reader, pq.ParquetFile):
            yield from self.reader.iter_batches(batch_size=BATCH_ROWS, columns=columns, use_threads=False)
        elif isinstance(self.reader, pa.RecordBatchFileReader):
            yield from (self.reader.get_batch(i) for i in range(self.reader.num_record_batches))
        else:
            yield from self.reader


@contextmanager
def open_table(file: Path) -> Iterator[OpenTable]:
    """A table, memory-mapped; `.arrow` may be Arrow's file or stream format.

    Raises:
        ArrowException, OSError: the file is missing or damaged.
    """
    with pa.memory_map(str(file)) as source:
        if file.suffix.lower() == ".parquet":
            with pq.ParquetFile(source) as reader:
                yield OpenTable(reader.schema_arrow, reader)
            return
        try:
            opened = pa.ipc.open_file(source)
        except pa.ArrowInvalid:
            source.seek(0)
            opened = pa.ipc.open_stream(source)  # the format of Hugging Face's cache
        yield OpenTable(opened.schema, opened)

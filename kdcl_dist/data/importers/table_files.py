"""Parquet and Arrow IPC files as streams of record batches."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from kdcl_dist.data.arrow_file import MAGIC_BYTES, check_messages
from kdcl_dist.data.parquet_file import open_parquet

__all__ = ["SUFFIXES", "OpenTable", "open_table"]

#: Beginning of a file of Arrow's file format.
MAGIC = b"ARROW1"
SUFFIXES = (".parquet", ".arrow")
#: Images in memory at a time.
BATCH_ROWS = 16


@dataclass
class OpenTable:
    """A table file that may come from anyone, memory-mapped; nothing of its columns is read yet.

    Attributes:
        schema: the columns.
        content: the file.
        is_parquet: whether it is Parquet; else Arrow's file or stream format.
    """

    schema: pa.Schema
    content: pa.Buffer
    is_parquet: bool

    def batches(self, columns: list[str], rows: int = BATCH_ROWS) -> Iterator[pa.RecordBatch]:
        """The given columns, in the given order, at most `rows` rows at a time.

        Raises:
            ArrowException, OSError, ValueError, struct.error: the file is damaged, or unfolds to far
                more than its size.
        """
        for batch in self._parquet(columns, rows) if self.is_parquet else self._arrow():
            chosen = batch.select(columns)
            chosen.validate(full=True)
            for start in range(0, len(chosen), rows):
                yield chosen.slice(start, rows)

    def _parquet(self, columns: list[str], rows: int) -> Iterator[pa.RecordBatch]:
        with open_parquet(self.content, columns) as reader:
            yield from reader.iter_batches(batch_size=rows, columns=columns, use_threads=False)

    def _arrow(self) -> Iterator[pa.RecordBatch]:
        stream = _stream(self.content)
        check_messages(stream, dictionaries=True)
        yield from pa.ipc.open_stream(stream)


@contextmanager
def open_table(file: Path) -> Iterator[OpenTable]:
    """A table; `.arrow` may be Arrow's file or stream format.

    Raises:
        ArrowException, OSError, ValueError, struct.error: the file is missing, no regular file, or damaged.
    """
    if not file.is_file():
        raise ValueError("not a regular file")
    with pa.memory_map(str(file)) as source:
        content = source.read_buffer()
        yield _opened(content, file.suffix.lower() == ".parquet")


def _opened(content: pa.Buffer, is_parquet: bool) -> OpenTable:
    if is_parquet:
        with open_parquet(content, ()) as reader:
            schema = reader.schema_arrow
    else:
        schema = pa.ipc.open_stream(_stream(content)).schema
    _ = schema.names, [str(kind) for kind in schema.types]  # one that is not UTF-8 raises here
    return OpenTable(schema, content, is_parquet)


def _stream(content: pa.Buffer) -> pa.Buffer:
    """The messages in a file of Arrow's file format, or of the stream format of Hugging Face's cache."""
    if bytes(memoryview(content)[: len(MAGIC)]) != MAGIC:
        return content
    pa.ipc.open_file(content)  # a truncated file has no footer
    return content.slice(MAGIC_BYTES)

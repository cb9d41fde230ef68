"""Opening an Arrow IPC file that may come from anyone: memory-mapped, uncompressed, and validated as a whole.

The reader of Arrow trusts what a file says of itself. A row count, an offset or a buffer size that lies would
make it read beyond the file, and a compressed buffer of kilobytes can unfold to gigabytes. So compression is
refused before anything is decoded, and all sizes and offsets are checked before a value is read.
"""

from __future__ import annotations

import struct
from pathlib import Path

import pyarrow as pa

from kdcl_dist.errors import DataError, one_line

__all__ = ["MAGIC_BYTES", "check_messages", "open_table"]

#: Bytes of "ARROW1" and its padding, after which a file goes on as a stream does.
MAGIC_BYTES = 8
#: Where the fields that are looked for stand in Message, RecordBatch and DictionaryBatch of Message.fbs.
HEADER, CUSTOM_METADATA, COMPRESSION, DICTIONARY_DATA = 2, 4, 3, 1


def open_table(file: Path, remedy: str = "import it again") -> pa.Table:
    """The table in a file; its columns lie in the mapped file and take no memory of their own.

    Args:
        file: its path.
        remedy: the end of an error.

    Raises:
        DataError: `file` is no regular file, no whole Arrow IPC file, is compressed, or contradicts itself.
    """
    try:
        if not file.is_file():
            raise DataError(f"{file}: {'not a regular file' if file.exists() else 'no such file'}; {remedy}")
        with pa.memory_map(str(file)) as source:
            content = source.read_buffer()
        batches = pa.ipc.open_file(content).num_record_batches  # a truncated file has no footer
        stream = content.slice(MAGIC_BYTES)
        check_messages(stream)
        schema = pa.ipc.open_stream(stream).schema
        _ = schema.names  # one that is not UTF-8 raises here, not where it is shown
        return pa.Table.from_batches(_validated(stream, batches), schema)
    except (pa.ArrowException, OSError, ValueError, OverflowError, struct.error) as error:
        raise DataError(
            f"{file}: not an Arrow IPC file, or truncated or damaged: {one_line(error)}; {remedy}"
        ) from error


def _validated(stream: pa.Buffer, count: int) -> list[pa.RecordBatch]:
    """The batches of the stream, as many as the file's footer counts."""
    batches = list(pa.ipc.open_stream(stream))
    if len(batches) != count:
        raise ValueError(f"it holds {len(batches)} record batches, its footer counts {count}")
    for batch in batches:
        batch.validate(full=True)
    return batches


def check_messages(stream: pa.Buffer, *, dictionaries: bool = False) -> None:
    """See that a stream holds a schema and plain record batches only; nothing is decoded.

    Args:
        stream: the messages.
        dictionaries: whether it may hold plain dictionaries too.

    Raises:
        ArrowException, ValueError, struct.error: it holds something else, is compressed, or is damaged.
    """
    reader = pa.ipc.MessageReader.open_stream(stream)
    expected: tuple[str, ...] = ("schema",)
    while True:
        try:
            message = reader.read_next_message()
        except StopIteration:
            return
        if message.type not in expected:
            raise ValueError(f"it holds a message of type {message.type!r}")
        expected = ("record batch", "dictionary") if dictionaries else ("record batch",)
        data = memoryview(message.metadata)
        # Files of Arrow before 1.0 name their compression in the message's own metadata.
        batch = (HEADER,) if message.type == "record batch" else (HEADER, DICTIONARY_DATA)
        compressed = (*batch, COMPRESSION), (CUSTOM_METADATA,)
        if message.type != "schema" and any(
            _field(data, _table(data, 0), *path) is not None for path in compressed
        ):
            raise ValueError("its columns are compressed, so it cannot be mapped")


def _table(data: memoryview, position: int) -> int:
    """Where the table is to which the offset at a position points (FlatBuffers)."""
    return position + int(struct.unpack_from("<I", data, position)[0])


def _field(data: memoryview, table: int, field: int, *inner: int) -> int | None:
    """Where a field of a table is, or a field of the table that it is; None if it is absent."""
    vtable = table - struct.unpack_from("<i", data, table)[0]
    size = struct.unpack_from("<H", data, vtable)[0]
    slot = 4 + 2 * field
    offset = struct.unpack_from("<H", data, vtable + slot)[0] if slot < size else 0
    if not offset or not inner:
        return table + offset if offset else None
    return _field(data, _table(data, table + offset), *inner)

"""Opening a Parquet file that may come from anyone: what it says of its size is checked before it unfolds.

A page of kilobytes can decompress to gigabytes, a few bytes of a run-length code are millions of rows, and
one dictionary entry may stand in every row. So the footer and the headers of all pages that will be read are
read first: they have the sizes by which Arrow's reader allocates. They are read here, since pyarrow's own
objects of a damaged footer can end the process.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from functools import lru_cache
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from kdcl_dist.data.thrift import Fields, number, read_struct, structs

__all__ = ["open_parquet", "unfolded_limit"]

#: What the pages of a file may unfold to, for each of its bytes, and beside that.
UNFOLDED, BESIDE = 100, 16 << 20
#: Rows that a file may have, for each of its bytes, and beside that.
ROWS, ROWS_BESIDE = 10, 100_000
#: Bytes at the end of a file: the length of the footer and the magic word.
TAIL = 8
#: Fields of FileMetaData, RowGroup, ColumnChunk and ColumnMetaData in parquet.thrift.
FILE_ROWS, GROUPS = 3, 4
COLUMNS, GROUP_ROWS = 1, 3
METADATA = 3
PATH, VALUES, CHUNK_BYTES, FIRST_PAGE, DICTIONARY = 3, 5, 7, 9, 11
#: Names in the path of a struct's field; that of a list's elements has more.
LIST_PATH = 2
#: Fields of PageHeader, DataPageHeader and DataPageHeaderV2.
UNPACKED, PACKED, DATA, DATA_V2 = 2, 3, 5, 8
COUNT, ENCODING, ENCODING_V2 = 1, 2, 4
#: The encoding in which each value may repeat the whole of the one before: it unfolds without a limit.
DELTA_BYTE_ARRAY = 7


def unfolded_limit(size: int) -> int:
    """Bytes that the values of a file of `size` bytes may take in memory."""
    return UNFOLDED * size + BESIDE


def open_parquet(
    content: pa.Buffer, columns: Collection[str] | None = None, **options: Any
) -> pq.ParquetFile:
    """The reader of a file.

    Args:
        content: the file, in memory or mapped.
        columns: the columns that will be read, without those below them; None: all.
        options: further arguments of `pyarrow.parquet.ParquetFile`.

    Raises:
        ArrowException, OSError, ValueError: it is no whole Parquet file, or unfolds beyond `unfolded_limit`.
    """
    data = memoryview(content).cast("B")  # Arrow's bytes are signed
    footer = int.from_bytes(data[-TAIL:-4], "little")
    if len(data) < footer + TAIL:
        raise ValueError("it has no footer of Parquet")
    _check(_metadata(bytes(data[-TAIL - footer : -TAIL])), data, columns)
    limit = max(1, footer)  # a list in the footer has at most as many items as bytes
    return pq.ParquetFile(
        pa.BufferReader(content), thrift_string_size_limit=limit, thrift_container_size_limit=limit, **options
    )


@lru_cache(maxsize=1)  # a table is opened for its columns, its labels and each pass over its rows
def _metadata(footer: bytes) -> Fields:
    return read_struct(memoryview(footer), 0)[0]


def _check(metadata: Fields, data: memoryview, columns: Collection[str] | None) -> None:
    """See that rows and pages are as many and as large as a file of this size can have."""
    groups = structs(metadata, GROUPS)
    counts, rows, size = [number(group, GROUP_ROWS) for group in groups], number(metadata, FILE_ROWS), 0
    if min(counts, default=0) < 0 or sum(counts) != rows or rows > ROWS * len(data) + ROWS_BESIDE:
        raise ValueError(f"it says that it has {rows:,} rows in {len(data):,} bytes")
    for group, count in zip(groups, counts, strict=True):
        for column in structs(group, COLUMNS):
            chunk = column.get(METADATA)
            if not isinstance(chunk, dict):
                raise ValueError("a column has no metadata")
            if columns is None or _name(chunk) in columns:
                size += _unfolded(chunk, count, data)
    if size > unfolded_limit(len(data)):
        raise ValueError(f"its {len(data):,} bytes would unfold to {size:,}")


def _name(chunk: Fields) -> str:
    """The name of the column, without those below it."""
    path = chunk.get(PATH)
    if not isinstance(path, list) or not path or not isinstance(path[0], memoryview):
        raise ValueError("a column has no name")
    return bytes(path[0]).decode()


def _is_list(chunk: Fields) -> bool:
    """Whether a column has lists: their path has the names of the list and of its elements too."""
    return len(chunk[PATH]) > LIST_PATH


def _unfolded(chunk: Fields, rows: int, data: memoryview) -> int:
    """The bytes of a column's pages when they are decompressed."""
    values = number(chunk, VALUES)
    fits = rows <= values <= ROWS * len(data) + ROWS_BESIDE if _is_list(chunk) else values == rows
    if not fits:
        raise ValueError(f"a column has {values:,} values in {rows:,} rows")
    if not rows:  # Arrow reads none of its pages
        return 0
    start, dictionary = number(chunk, FIRST_PAGE), number({DICTIONARY: 0} | chunk, DICTIONARY)
    start = dictionary if 0 < dictionary < start else start
    end, size, left = start + number(chunk, CHUNK_BYTES), 0, values
    if not 0 <= start <= end <= len(data):
        raise ValueError("a column lies outside of the file")
    for header in _pages(data[:end], start):
        size += number(header, UNPACKED)
        if isinstance(page := header.get(DATA) or header.get(DATA_V2), dict):
            left -= number(page, COUNT)
            if page.get(ENCODING if DATA in header else ENCODING_V2) == DELTA_BYTE_ARRAY:
                raise ValueError("a column has the encoding DELTA_BYTE_ARRAY, which is not read")
    if left:
        raise ValueError(f"the pages of a column do not have its {values:,} values")
    return size


def _pages(data: memoryview, position: int) -> Iterator[Fields]:
    """The headers of the pages from a position to the end."""
    while position < len(data):
        header, position = read_struct(data, position)
        position += number(header, PACKED)
        if position > len(data):
            raise ValueError("a page goes beyond its column")
        yield header

"""Tables in text: CSV and JSON lines, read whole.

Arrow's reader of JSON follows nested values without a limit, and ends the process; Python's does not.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.csv as pa_csv

from kdcl_dist.utils.files import open_regular, read_regular

__all__ = ["CSV", "JSON_LINES", "read_text_table"]

#: Ends of names of files, with the character between values.
CSV = {".csv": ",", ".tsv": "\t"}
JSON_LINES = (".jsonl", ".ndjson", ".json")
#: Bytes of the largest file, which becomes several times as large in memory.
MAX_BYTES = 1 << 30
#: Bytes of the longest line of JSON, and of a CSV file's first.
MAX_LINE, MAX_HEADER = 16 << 20, 1 << 20
#: Columns that a file may have, at most.
MAX_COLUMNS = 10_000
#: Lines, and bytes of them, that are Python's objects at a time.
BATCH_LINES, BATCH_BYTES = 4096, 16 << 20


def read_text_table(file: Path) -> pa.Table:
    """The table in a file.

    Raises:
        ArrowException, OSError, ValueError: it is too large, no regular file, or damaged.
    """
    suffix = file.suffix.lower()
    return _read_csv(file, CSV[suffix]) if suffix in CSV else _read_json_lines(file)


def _read_csv(file: Path, delimiter: str) -> pa.Table:
    data = read_regular(file, MAX_BYTES)
    header = data[: MAX_HEADER + 1].split(b"\n", 1)[0]
    if len(header) > MAX_HEADER or header.count(delimiter.encode()) >= MAX_COLUMNS:
        raise ValueError(f"its first line names more than {MAX_COLUMNS:,} columns")
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise _not_utf8(data)
    table = pa_csv.read_csv(
        pa.BufferReader(data),
        read_options=pa_csv.ReadOptions(use_threads=False),
        parse_options=pa_csv.ParseOptions(delimiter=delimiter),
    )
    if not _is_utf8(table.schema):
        raise _not_utf8(data)
    return table


def _is_utf8(schema: pa.Schema) -> bool:
    """Whether a CSV file was in UTF-8: of others Arrow makes columns of bytes, and names that fail."""
    try:
        _ = schema.names
    except UnicodeDecodeError:
        return False
    return not any(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) for kind in schema.types)


def _not_utf8(data: bytes) -> ValueError:
    try:
        data.decode("utf-8")
        place = ""
    except UnicodeDecodeError as error:
        place = f" (byte 0x{data[error.start]:02x} in line {data.count(10, 0, error.start) + 1})"
    return ValueError(f"it is not UTF-8{place}: save it as UTF-8")


def _read_json_lines(file: Path) -> pa.Table:
    tables = []
    with open_regular(file) as lines:
        for rows in _batches(lines):
            names = dict.fromkeys(name for row in rows for name in row)
            if len(names) > MAX_COLUMNS:
                raise ValueError(f"its lines name more than {MAX_COLUMNS:,} columns")
            tables.append(pa.table({name: pa.array([row.get(name) for row in rows]) for name in names}))
    if not tables:
        raise ValueError("it has no lines")
    return pa.concat_tables(tables, promote_options="permissive")


def _batches(lines: BinaryIO) -> Iterator[list[dict[str, Any]]]:
    """The objects of some lines at a time."""
    rows: list[dict[str, Any]] = []
    number = size = batch = 0
    while line := lines.readline(MAX_LINE + 1):
        number, size, batch = number + 1, size + len(line), batch + len(line)
        if len(line) > MAX_LINE or size > MAX_BYTES:
            raise ValueError(
                f"line {number} goes beyond {MAX_LINE:,} bytes, or the file beyond {MAX_BYTES:,}"
            )
        if line.strip():
            rows.append(_object(line, number))
        if rows and (len(rows) == BATCH_LINES or batch >= BATCH_BYTES):
            yield rows
            rows, batch = [], 0
    if rows:
        yield rows


def _object(line: bytes, number: int) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"line {number} is not JSON: {str(error)[:100]}") from error
    if not isinstance(found, dict):
        raise ValueError(
            f"line {number} is no object: write one a line, as df.to_json(..., orient='records', "
            "lines=True) does"
        )
    return found

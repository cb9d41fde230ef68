"""A Parquet file that lies or unfolds without end is refused in one line, in little time and memory."""

from __future__ import annotations

import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cohorts import ROOT
from importing import encoded, imported, refused

from kdcl_dist.data import parquet_file
from kdcl_dist.data.dataset import ArrowDataset
from kdcl_dist.data.sources.opening import open_dataset
from kdcl_dist.errors import RunFolderError
from kdcl_dist.run.metrics import SCHEMA, read_metrics
from kdcl_dist.run.storage import Folder

#: Reads files with changed bytes, within its memory so far and a multiple of their size. A signal ends it.
FUZZ = """
import random, resource, sys
from pathlib import Path
from changed_bytes import changed
from kdcl_dist.data.importers.table import Table
from kdcl_dist.data.parquet_file import unfolded_limit
from kdcl_dist.errors import DataError, RunFolderError
from kdcl_dist.run.metrics import read_metrics
from kdcl_dist.run.storage import Folder

kind, source, folder, count = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4])
whole, draw = source.read_bytes(), random.Random(7)
name = "run/metrics/epoch-0000.parquet" if kind == "metrics" else f"t{source.suffix}"
file = folder / name
file.parent.mkdir(parents=True, exist_ok=True)

def read():
    if kind == "metrics":
        return read_metrics(Folder(str(folder / "run")))
    return [item.size for item in Table(file, image="image", label="label").items("train")]

file.write_bytes(whole)
read()
pages = int(Path("/proc/self/statm").read_text().split()[0])
slack = 6 * unfolded_limit(len(whole)) + (64 << 20)  # 64 MB for the allocators of Python and Arrow
resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + slack,) * 2)
done = 0
for number in range(count):
    file.write_bytes(changed(whole, draw))
    try:
        read()
        done += 1
    except (DataError, RunFolderError) as error:
        assert chr(10) not in str(error)
print(done, count)
"""


def metrics(rows: int = 60) -> pa.Table:
    columns = {
        "student": ["a", "b"] * (rows // 2),
        "epoch": [0] * rows,
        "step": list(range(rows)),
        "split": ["train", "test"] * (rows // 2),
        "name": ["loss"] * rows,
        "value": np.random.default_rng(0).random(rows),
    }
    return pa.table(columns, schema=SCHEMA)


def images(labels: list[Any], data: list[bytes]) -> pa.Table:
    return pa.table({"label": pa.array(labels), "image": pa.array(data, pa.binary())})


def write_run(folder: Path, table: pa.Table | bytes, **options: Any) -> Folder:
    """A run folder with the metrics of one epoch."""
    run = Folder(str(folder))
    if isinstance(table, bytes):
        run.write("metrics/epoch-0000.parquet", table)
    else:
        run.write("metrics/epoch-0000.parquet", b"")
        pq.write_table(table, folder / "metrics" / "epoch-0000.parquet", **options)
    return run


@pytest.mark.parametrize("kind", ["metrics", "parquet", "arrow"])
def test_changed_bytes_are_refused_or_harmless(kind: str, tmp_path: Path) -> None:
    source = tmp_path / ("whole.arrow" if kind == "arrow" else "whole.parquet")
    table = images(
        [number % 3 for number in range(20)], [encoded("PNG", size=(4, 4), seed=i) for i in range(20)]
    )
    if kind == "arrow":
        table = table.set_column(0, "label", table["label"].cast(pa.string()).dictionary_encode())
        with pa.ipc.new_file(str(source), table.schema) as writer:
            writer.write_table(table)
    else:
        pq.write_table(metrics() if kind == "metrics" else table, source, compression="zstd")
    done = subprocess.run(
        [sys.executable, "-c", FUZZ, kind, str(source), str(tmp_path), "1000"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    read, count = map(int, done.stdout.split())
    assert count == 1000
    assert read < count  # values may change without harm


def refused_metrics(run: Folder, words: str) -> None:
    """Reading the metrics is refused in one line, and takes little memory."""
    with pytest.raises(
        RunFolderError, match=rf"epoch-0000\.parquet cannot be read \(.*{words}.*\); delete it"
    ) as caught:
        read_metrics(run)
    assert "\n" not in str(caught.value)


BOMB = 100 << 20


@pytest.mark.parametrize(("codec", "dictionary"), [("zstd", False), ("gzip", False), ("zstd", True)])
def test_pages_that_unfold(codec: str, dictionary: bool, tmp_path: Path) -> None:
    source = tmp_path / "bomb.parquet"
    pq.write_table(images([0], [bytes(BOMB)]), source, compression=codec, use_dictionary=dictionary)
    before = pa.total_allocated_bytes()
    refused("table", source, "would unfold to")
    assert pa.total_allocated_bytes() - before < 1 << 20


def test_a_dictionary_entry_in_every_row(tmp_path: Path) -> None:
    """No page is large, but the rows together are."""
    table = metrics(20_000)
    text = pa.DictionaryArray.from_arrays(np.zeros(len(table), np.int32), pa.array(["x" * 500_000]))
    table = table.set_column(4, "name", text)
    refused_metrics(write_run(tmp_path, table, use_dictionary=True), "would unfold to 10,000,[0-9,]+")


def test_a_repeated_text_without_a_dictionary(tmp_path: Path) -> None:
    table = metrics(2_000).set_column(4, "name", pa.array(["x" * 20_000] * 2_000))
    run = write_run(tmp_path, table, use_dictionary=False, column_encoding={"name": "DELTA_BYTE_ARRAY"})
    refused_metrics(run, "DELTA_BYTE_ARRAY")


def test_more_rows_than_a_file_can_have(tmp_path: Path) -> None:
    rows = 3_000_000
    source = tmp_path / "rows.parquet"
    column = pa.array(np.zeros(rows, np.int32))
    pq.write_table(pa.table({"label": column, "image": pa.nulls(rows, pa.binary())}), source)
    refused("table", source, "3,000,000 rows in")


def footer_of(path: Path) -> tuple[bytes, bytes]:
    """A file's content before its footer, and the footer."""
    data = path.read_bytes()
    (length,) = struct.unpack("<I", data[-8:-4])
    return data[: -8 - length], data[-8 - length : -8]


def varint(number: int) -> bytes:
    """A number of 0 or more in Thrift's compact protocol, of a type with a sign."""
    return plain_varint(number << 1)


def plain_varint(number: int) -> bytes:
    """The same of a type without a sign."""
    out = b""
    while number > 127:
        out, number = out + bytes([number & 127 | 128]), number >> 7
    return out + bytes([number])


@pytest.mark.parametrize("rows", [2**31 - 1, 2**62])
def test_a_footer_that_counts_more_rows(rows: int, tmp_path: Path) -> None:
    source = tmp_path / "t.parquet"
    pq.write_table(images([0] * 77, [b"x"] * 77), source)
    body, footer = footer_of(source)
    changed = footer.replace(varint(77), varint(rows))
    source.write_bytes(body + changed + struct.pack("<I", len(changed)) + b"PAR1")
    refused("table", source, "not Parquet or Arrow IPC, or damaged")


@pytest.mark.parametrize("depth", [1_000, 100_000])
def test_a_schema_that_is_nested_too_deeply(depth: int, tmp_path: Path) -> None:
    group, leaf = b"\x35\x00\x18\x01g\x15\x02\x00", b"\x15\x02\x25\x00\x18\x01x\x00"
    schema = b"\xfc" + plain_varint(depth + 2) + group * (depth + 1) + leaf
    footer = b"\x15\x02\x19" + schema + b"\x16\x00\x19\x0c\x00"
    data = b"PAR1" + footer + struct.pack("<I", len(footer)) + b"PAR1"
    (tmp_path / "t.parquet").write_bytes(data)
    refused("table", tmp_path / "t.parquet", "nested")
    refused_metrics(write_run(tmp_path / "run", data), "nested")


@pytest.mark.parametrize("data", [b"", b"PAR1", b"PAR1" * 3, b"PAR1" + b"\xff" * 4 + b"PAR1", b"\0" * 100])
def test_what_is_no_parquet_file(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "t.parquet").write_bytes(data)
    refused("table", tmp_path / "t.parquet", "not Parquet or Arrow IPC, or damaged")
    refused_metrics(write_run(tmp_path / "run", data), "")


def test_files_that_are_fine(tmp_path: Path) -> None:
    """Row groups and pages, pages of version 2, no dictionary, equal images, a column that is not read."""
    data = [encoded("PNG", seed=number % 2) for number in range(400)]
    table = images(list(range(4)) * 100, data)
    table = table.append_column("other", pa.array([[bytes(100_000)] * 20] * 400))
    options: list[dict[str, Any]] = [
        {"row_group_size": 30, "data_page_size": 100, "compression": "zstd"},
        {"data_page_version": "2.0", "use_dictionary": False, "compression": "zstd"},
        {"column_encoding": {"label": "DELTA_BINARY_PACKED"}, "use_dictionary": False},
    ]
    for number, chosen in enumerate(options):
        (folder := tmp_path / str(number)).mkdir()
        pq.write_table(table, folder / "t.parquet", **chosen)
        found = ArrowDataset(str(imported("table", folder / "t.parquet") / "train"))
        assert found.labels.tolist() == table["label"].to_pylist()
        assert bytes(found.data(1)) == data[1]
    many = metrics(100_000)
    assert read_metrics(write_run(tmp_path / "run", many, compression="zstd")).equals(many)


@pytest.mark.parametrize("codec", ["zstd", "lz4"])
def test_compressed_arrow_tables_are_refused(codec: str, tmp_path: Path) -> None:
    label = pa.array(["x" * (BOMB // 10)], pa.large_string())
    tables = [
        images([0], [bytes(BOMB // 10)]),
        images([0], [b"x"]).set_column(0, "label", label.dictionary_encode()),
    ]
    for table in tables:
        options = pa.ipc.IpcWriteOptions(compression=codec)
        with pa.ipc.new_stream(str(tmp_path / "t.arrow"), table.schema, options=options) as writer:
            writer.write_table(table)
        refused("table", tmp_path / "t.arrow", "compressed")


def test_a_footer_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Opening a table reads its file five times. Parsing a footer of 10,000 columns takes half a second."""
    footers, read_struct = [], parquet_file.read_struct

    def counted(data: memoryview, position: int) -> Any:
        found = read_struct(data, position)
        footers.extend([1] if position == 0 and parquet_file.GROUPS in found[0] else [])
        return found

    monkeypatch.setattr(parquet_file, "read_struct", counted)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for number in range(2):
        columns = {f"c{i}": [float(number), 1.0, 2.0] for i in range(5)} | {"label": [0, 1, 1]}
        pq.write_table(pa.table(columns), tmp_path / f"{number}.parquet")
        assert len(open_dataset(str(tmp_path / f"{number}.parquet"))) == 3
    assert len(footers) == 2

"""A data set file that lies is refused in one line: never a crash, never more memory than it is worth."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from arrow_files import INFO, write_arrow
from cohorts import ROOT

from kdcl_dist.data.arrow_file import open_table
from kdcl_dist.data.dataset import ArrowDataset, Info
from kdcl_dist.data.writer import write_dataset
from kdcl_dist.errors import DataError

#: Opens files with changed bytes, within its memory so far and three times the file's size. A signal ends it.
FUZZ = """
import random, resource, sys
from pathlib import Path
import numpy, torch
from changed_bytes import changed
from kdcl_dist.data.dataset import ArrowDataset
from kdcl_dist.errors import DataError

source, folder, seed, count = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
whole, draw, file = source.read_bytes(), random.Random(seed), folder / "changed.arrow"
ArrowDataset(str(source)).fingerprint
pages = int(Path("/proc/self/statm").read_text().split()[0])
slack = 3 * len(whole) + (64 << 20)  # 64 MB for the allocators of Python and Arrow
resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + slack,) * 2)
opened = 0
for number in range(count):
    file.write_bytes(changed(whole, draw))
    try:
        dataset = ArrowDataset(str(file))
        for index in range(len(dataset)):
            dataset.image(index)
        dataset.fingerprint
        opened += 1
    except DataError as error:
        assert chr(10) not in str(error)
print(opened, count)
"""


def encoded(path: Path) -> Path:
    """A small data set of encoded images: its offsets and sizes can lie."""
    info = Info(("x", "y"), "encoded", 1, None, (0.5,), (0.5,))
    samples = [(number % 2, bytes([number]) * (number + 1)) for number in range(6)]
    write_dataset(path, samples, info)
    return path


@pytest.mark.parametrize("kind", ["raw", "encoded"])
def test_changed_bytes_are_refused_or_harmless(kind: str, tmp_path: Path) -> None:
    source = tmp_path / "whole.arrow"
    if kind == "raw":
        write_dataset(source, [(number % 2, bytes(range(4))) for number in range(6)], INFO)
    else:
        encoded(source)
    done = subprocess.run(
        [sys.executable, "-c", FUZZ, str(source), str(tmp_path), "7", "1500"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    opened, count = map(int, done.stdout.split())
    assert count == 1500
    assert opened < count  # pixels and labels may change without harm


@pytest.mark.parametrize("codec", ["zstd", "lz4"])
def test_compression_is_refused_before_anything_unfolds(codec: str, tmp_path: Path) -> None:
    bomb = tmp_path / "bomb.arrow"
    info = Info(("x", "y"), "encoded", 1, None, (0.5,), (0.5,))
    options = pa.ipc.IpcWriteOptions(compression=codec)
    with pa.OSFile(str(bomb), "wb") as sink, pa.ipc.new_file(sink, info.schema(), options=options) as writer:
        columns = [pa.array([0], pa.int32()), pa.array([bytes(200_000_000)], pa.binary())]
        writer.write_batch(pa.record_batch(columns, schema=info.schema()))
    del columns
    assert bomb.stat().st_size < 4_000_000
    before = pa.total_allocated_bytes()
    with pytest.raises(DataError, match="compressed"):
        ArrowDataset(str(bomb))
    assert pa.total_allocated_bytes() - before < 1_000_000


def test_a_compressed_dictionary_is_refused_before_anything_unfolds(tmp_path: Path) -> None:
    bomb, options = tmp_path / "bomb.arrow", pa.ipc.IpcWriteOptions(compression="zstd")
    column = pa.DictionaryArray.from_arrays(pa.array([0], pa.int32()), pa.array([bytes(100_000_000)]))
    table = pa.table({"label": pa.array([0], pa.int32()), "image": column})
    with pa.OSFile(str(bomb), "wb") as sink, pa.ipc.new_file(sink, table.schema, options=options) as writer:
        writer.write_table(table)
    del table, column
    before = pa.total_allocated_bytes()
    with pytest.raises(DataError, match="type 'dictionary'"):
        ArrowDataset(str(bomb))
    assert pa.total_allocated_bytes() - before < 1_000_000


def test_the_compression_of_old_files_is_refused(tmp_path: Path) -> None:
    """Before Arrow 1.0 it stood in the message's own metadata, which readers still follow."""
    old = tmp_path / "old.arrow"
    batch = pa.record_batch([pa.array([0], pa.int32()), pa.array([b"abcd"], pa.binary(4))], INFO.schema())
    with pa.OSFile(str(old), "wb") as sink, pa.ipc.new_file(sink, INFO.schema()) as writer:
        writer.write_batch(batch, custom_metadata={"ARROW:experimental_compression": "zstd"})
    with pytest.raises(DataError, match="compressed"):
        ArrowDataset(str(old))


def test_a_mapped_file_takes_no_memory(tmp_path: Path) -> None:
    file = Path(write_arrow(tmp_path / "d.arrow", INFO.schema(), [0] * 50_000, [b"abcd"] * 50_000))
    before = pa.total_allocated_bytes()
    table = open_table(file)
    assert table.num_rows == 50_000
    assert pa.total_allocated_bytes() - before < 10_000


def test_offsets_that_lead_beyond_the_file(tmp_path: Path) -> None:
    file = encoded(tmp_path / "d.arrow")
    data = file.read_bytes()
    offsets = np.cumsum([0, *range(1, 7)]).astype("<i4").tobytes()
    assert data.count(offsets) == 1
    lie = np.array([0, 1, 3, 2**30, 10, 15, 21], "<i4").tobytes()
    file.write_bytes(data.replace(offsets, lie))
    with pytest.raises(DataError, match="damaged"):
        ArrowDataset(str(file))


@pytest.mark.parametrize(
    "shape", [[10**9, 10**9, 10**9], [-1, 2, 2], [1, 0, 2], [1, 2], ["1", 2, 2], [1, 2.5, 2], [2**40, 1, 1]]
)
def test_a_shape_that_cannot_be(shape: list[object], tmp_path: Path) -> None:
    metadata = {b"kdcl": json.dumps(asdict(INFO) | {"shape": shape}).encode()}
    schema = INFO.schema().with_metadata(metadata)
    with pytest.raises(DataError, match="metadata"):
        ArrowDataset(write_arrow(tmp_path / "d.arrow", schema, [0], [b"abcd"]))


@pytest.mark.parametrize(
    "fields",
    [
        {"classes": [["x"], "y"]},
        {"classes": {"x": 1}},
        {"classes": [1, 2]},
        {"mean": ["0.5"]},
        {"std": [float("nan")]},
        {"std": [float("inf")]},
        {"channels": "1"},
        {"channels": 10**30},
        {"encoding": "pickle"},
        {"source": ["x"]},
    ],
    ids=str,
)
def test_metadata_of_other_types(fields: dict[str, object], tmp_path: Path) -> None:
    metadata = {b"kdcl": json.dumps(asdict(INFO) | fields).encode()}
    with pytest.raises(DataError):
        ArrowDataset(write_arrow(tmp_path / "d.arrow", INFO.schema().with_metadata(metadata), [0], [b"abcd"]))


def test_special_files_are_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(fifo := tmp_path / "fifo.arrow")
    (tmp_path / "link.arrow").symlink_to("/dev/zero")
    began = time.process_time()
    for path in (fifo, Path("/dev/zero"), tmp_path / "link.arrow"):
        with pytest.raises(DataError, match="not a regular file"):
            ArrowDataset(str(path))
    with pytest.raises(DataError, match="not a regular file"):
        ArrowDataset(str(tmp_path))  # a folder of shards
    assert time.process_time() - began < 2


def test_the_format_is_told_first(tmp_path: Path) -> None:
    metadata = {b"kdcl": json.dumps(asdict(INFO) | {"format": 2, "columns": ["x"]}).encode()}
    with pytest.raises(DataError, match="format 2; this version reads format 1"):
        ArrowDataset(write_arrow(tmp_path / "d.arrow", INFO.schema().with_metadata(metadata), [0], [b"abcd"]))


def test_an_error_in_the_metadata_is_one_line(tmp_path: Path) -> None:
    for text in (json.dumps(asdict(INFO) | {"a\nb" * 99: 1}), "[" * 100_000, "[]", "{"):
        schema = INFO.schema().with_metadata({b"kdcl": text.encode()})
        with pytest.raises(DataError) as caught:
            ArrowDataset(write_arrow(tmp_path / "d.arrow", schema, [0], [b"abcd"]))
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 500


def test_whole_numbers_in_mean_and_deviation(tmp_path: Path) -> None:
    file = tmp_path / "d.arrow"
    write_dataset(file, [(0, b"abcd")], replace(INFO, mean=(0,), std=(1,)))
    assert ArrowDataset(str(file)).std == (1,)


def test_another_data_set_of_the_same_columns_is_still_read(tmp_path: Path) -> None:
    file = write_arrow(tmp_path / "d.arrow", replace(INFO, source="x").schema(), [0, 1], [b"abcd", b"efgh"])
    assert ArrowDataset(file).pixels(1).tobytes() == b"efgh"

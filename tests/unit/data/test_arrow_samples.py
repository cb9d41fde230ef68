"""Data sets of samples that are no images, on disk: what is written is read, and a lying file is refused."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
import tracemalloc
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from cohorts import ROOT
from sample_sets import sentence, write_sentences
from sklearn.preprocessing import StandardScaler

from kdcl_dist.data.arrow_samples import DTYPES, ArrowSamples, SampleInfo, open_arrow
from kdcl_dist.data.dataset import ArrowDataset
from kdcl_dist.data.describe import describe
from kdcl_dist.data.layout import Column
from kdcl_dist.data.sample_writer import BATCH_ROWS, SampleWriter
from kdcl_dist.data.samples import Sample, named
from kdcl_dist.data.sources.opening import open_dataset
from kdcl_dist.data.statistics import Moments, Scale
from kdcl_dist.errors import DataError
from kdcl_dist.utils.data_specs import DEMO

#: Opens files with changed bytes, within its memory so far and three times the file's size. A signal ends it.
FUZZ = """
import random, resource, sys
from pathlib import Path
import numpy, torch
from changed_bytes import changed
from kdcl_dist.data.arrow_samples import open_arrow
from kdcl_dist.data.describe import describe
from kdcl_dist.errors import DataError

source, folder, seed, count = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
whole, draw, file = source.read_bytes(), random.Random(seed), folder / "changed.arrow"
describe(open_arrow(str(source)))
pages = int(Path("/proc/self/statm").read_text().split()[0])
slack = 3 * len(whole) + (64 << 20)  # 64 MB for the allocators of Python and Arrow
resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + slack,) * 2)
opened = 0
for number in range(count):
    file.write_bytes(changed(whole, draw))
    try:
        dataset = open_arrow(str(file))
        for index in range(len(dataset)):
            dataset.sample(index) if hasattr(dataset, "sample") else dataset.image(index)
        describe(dataset)
        opened += 1
    except DataError as error:
        assert chr(10) not in str(error)
assert "pandas" not in sys.modules
print(opened, count)
"""
FIXED = SampleInfo(("x", "y"), "dict", (Column("t", "float32", (2, 2)),))
VARYING = SampleInfo(("x", "y"), "dict", (Column("t", "int64", (None, 2)),))
ROWS = [[1, 2, 3, 4], [5, 6, 7, 8]]


def stored(path: Path, schema: pa.Schema, rows: Any = ROWS, labels: Any = (0, 1)) -> str:
    """A file of one column, written without the package's writer."""
    arrays = [pa.array(labels, pa.int32()), pa.array(rows, schema.field(1).type)]
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        writer.write_batch(pa.record_batch(arrays, schema=schema))
    return str(path)


def changed(info: SampleInfo, **fields: Any) -> pa.Schema:
    """The schema of the metadata, of which some fields are others."""
    return info.schema().with_metadata({b"kdcl": json.dumps(asdict(info) | fields).encode()})


def equal(one: Sample, other: Sample) -> bool:
    pairs = zip(named(one).items(), named(other).items(), strict=True)
    return type(one) is type(other) and all(
        a == b and x.dtype == y.dtype and torch.equal(x, y) for (a, x), (b, y) in pairs
    )


def test_round_trip(tmp_path: Path) -> None:
    count = BATCH_ROWS + 7
    found = open_dataset(str(write_sentences(tmp_path / "s.arrow", count)))
    assert isinstance(found, ArrowSamples)
    assert found.labels.tolist() == [index % 3 for index in range(count)]
    assert all(equal(found.sample(index), sentence(index)) for index in range(count))
    assert str(found.info.layout) == "dict of tokens: int64 (any), mask: bool (any), weight: float32 (2)"
    again = pickle.loads(pickle.dumps(found))
    assert equal(again.sample(5), sentence(5))
    assert again.fingerprint == found.fingerprint
    changing = found.sample(3)["tokens"]
    changing += 100
    assert equal(found.sample(3), sentence(3)), "a sample handed out is a copy"
    assert [file.name for file in tmp_path.iterdir()] == ["s.arrow"]
    lines = dict(describe(found))
    assert lines["sample"] == "dict"
    assert lines["  tokens"] == "int64 (any)"
    assert lines["  weight"].startswith("float32 (2), mean 257.5, 3, std ")


@pytest.mark.parametrize("name", sorted(DTYPES))
@pytest.mark.parametrize("lengths", [(2, 2, 2), (2, 0, 5)], ids=["fixed", "varying"])
def test_every_type_and_kind(tmp_path: Path, name: str, lengths: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randint(0, 2, (n, 3), generator=generator).to(getattr(torch, name)) for n in lengths]
    for kind, samples in (
        ("tensor", tensors),
        ("tuple", [(tensor, torch.tensor(1)) for tensor in tensors]),
        ("dict", [{"x y": tensor} for tensor in tensors]),
    ):
        with SampleWriter(tmp_path / f"{kind}.arrow", ["only"]) as writer:
            for sample in samples:
                writer.add(0, sample)
        found = ArrowSamples(str(tmp_path / f"{kind}.arrow"))
        assert found.info.kind == kind
        assert all(equal(found.sample(index), sample) for index, sample in enumerate(samples))


def test_a_data_set_takes_no_memory_of_its_own(tmp_path: Path) -> None:
    with SampleWriter(tmp_path / "s.arrow", ["x"]) as writer:
        for index in range(200):
            writer.add(0, (torch.zeros(100, 100), torch.zeros(100 + index)))
    before = pa.total_allocated_bytes()
    tracemalloc.start()
    try:
        found = ArrowSamples(str(tmp_path / "s.arrow"))
        assert len(found) == 200
        assert tracemalloc.get_traced_memory()[1] < 200_000, "of 8 MB"
    finally:
        tracemalloc.stop()
    assert pa.total_allocated_bytes() - before < 10_000


def test_fingerprints(tmp_path: Path) -> None:
    paths = [write_sentences(tmp_path / name, count) for name, count in (("a", 24), ("b", 24), ("c", 25))]
    first, equal_one, other = (ArrowSamples(str(path)).fingerprint for path in paths)
    assert first == equal_one != other


def test_statistics_are_those_of_scikit_learn(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    rows_NF = generator.normal(1e4, [1, 1e-3, 50], (3000, 3))
    rows_NF[:, 2] = 7  # a constant feature
    with SampleWriter(tmp_path / "s.arrow", ["x"]) as writer:
        for row_F in rows_NF:
            writer.add(0, {"f": torch.from_numpy(row_F), "id": torch.tensor(3)})
    found, scaler = ArrowSamples(str(tmp_path / "s.arrow")), StandardScaler().fit(rows_NF)
    assert list(found.mean) == ["f"]
    np.testing.assert_allclose(found.mean["f"], scaler.mean_, rtol=1e-12)
    np.testing.assert_allclose(np.square(found.std["f"]), scaler.var_, rtol=1e-7, atol=1e-20)
    scaled = Scale(found.mean, found.std)(found.sample(9))
    np.testing.assert_allclose(scaled["f"], scaler.transform(rows_NF[9:10])[0], rtol=1e-6, atol=1e-6)
    assert scaled["id"] == 3
    parts = Moments(3)
    for part in np.split(rows_NF, [1, 500, 500]):
        parts.add(part)
    np.testing.assert_allclose(parts.mean_F, scaler.mean_, rtol=1e-12)


@pytest.mark.parametrize("kind", ["sentences", "fixed"])
def test_changed_bytes_are_refused_or_harmless(kind: str, tmp_path: Path) -> None:
    source = tmp_path / "whole.arrow"
    if kind == "sentences":
        write_sentences(source, 6)
    else:
        stored(source, FIXED.schema())
    done = subprocess.run(
        [sys.executable, "-c", FUZZ, str(source), str(tmp_path), "7", "800"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    opened, count = map(int, done.stdout.split())
    assert 0 < opened < count == 800  # numbers may change without harm


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"classes": ["x", "x"]}, "names a class twice"),
        ({"classes": [1, 2]}, "classes"),
        ({"kind": "list"}, "kind"),
        ({"kind": "tensor"}, "columns 't' for samples of kind tensor"),
        ({"kind": "tuple"}, "columns 't' for samples of kind tuple"),
        ({"columns": []}, "columns  for"),
        ({"columns": [{"name": "label", "dtype": "int64", "shape": [1]}]}, "columns 'label'"),
        ({"columns": [{"name": "t", "dtype": "object", "shape": [1]}]}, "cannot be"),
        ({"columns": [{"name": "t", "dtype": "float32", "shape": [2, None]}]}, "cannot be"),
        ({"columns": [{"name": "t", "dtype": "float32", "shape": [0]}]}, "cannot be"),
        ({"columns": [{"name": "t", "dtype": "float32", "shape": [-2, -2]}]}, "cannot be"),
        ({"columns": [{"name": "t", "dtype": "float32", "shape": [2**20, 2**20]}]}, "cannot be"),
        ({"columns": [{"name": "t", "dtype": "float32", "shape": [10**30]}]}, "cannot be"),
        ({"columns": [{"name": "t", "dtype": "float32", "shape": [1] * 99}]}, "cannot be"),
        ({"columns": [{"name": "t", "dtype": "float32", "shape": [3, 2]}]}, "columns or metadata differ"),
        ({"columns": [{"name": "t", "dtype": "float32", "shape": [4], "x": 1}]}, "metadata"),
        ({"mean": {"t": [1.0]}, "std": {"t": [1.0]}}, "for each feature"),
        ({"mean": {"t": [1.0, 1.0]}}, "std of at least 0"),
        ({"mean": {"t": [1.0, 1.0]}, "std": {"t": [1.0, -1.0]}}, "std of at least 0"),
        ({"mean": {"t": [1.0, 1.0]}, "std": {"t": [1.0, float("nan")]}}, "metadata"),
        ({"format": 3}, "format 3; this version reads formats 1 and 2"),
        ({"surprise": 1}, "surprise"),
    ],
    ids=str,
)
def test_metadata_that_cannot_be(fields: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=words) as caught:
        open_arrow(stored(tmp_path / "d.arrow", changed(FIXED, **fields)))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize(
    ("info", "rows", "labels", "words"),
    [
        (FIXED, [ROWS[0], None], (0, 1), "rows without label or t"),
        (FIXED, [ROWS[0], [1, None, 2, 3]], (0, 1), "a null"),
        (FIXED, ROWS, (0, 2), "the label in row 1 is 2"),
        (FIXED, [], (), "no samples"),
        (VARYING, [[1, 2], [1, 2, 3]], (0, 1), r"do not fill the shape \(None, 2\)"),
        (VARYING, [[1, 2], [None, 2]], (0, 1), "a null"),
    ],
)
def test_rows_that_lie(info: SampleInfo, rows: Any, labels: Any, words: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=words):
        ArrowSamples(stored(tmp_path / "d.arrow", info.schema(), rows, labels))


def test_rows_are_read_as_the_layout_says(tmp_path: Path) -> None:
    fixed = ArrowSamples(stored(tmp_path / "f.arrow", FIXED.schema()))
    assert fixed.sample(1)["t"].tolist() == [[5, 6], [7, 8]]
    varying = ArrowSamples(stored(tmp_path / "v.arrow", VARYING.schema(), [[], [1, 2]]))
    assert varying.sample(0)["t"].shape == (0, 2)
    assert varying.sample(1)["t"].tolist() == [[1, 2]]


def test_shards_follow_each_other(tmp_path: Path) -> None:
    stored(tmp_path / "a.arrow", FIXED.schema())
    stored(tmp_path / "b.arrow", FIXED.schema(), [[9, 9, 9, 9]], [1])
    found = ArrowSamples(str(tmp_path))
    assert [float(found.sample(index)["t"][0, 0]) for index in range(3)] == [1, 5, 9]
    stored(tmp_path / "c.arrow", VARYING.schema())
    with pytest.raises(DataError, match="all shards must be of one import"):
        ArrowSamples(str(tmp_path))


def test_images_stay_format_1() -> None:
    assert isinstance(open_arrow(str(DEMO / "digits-test.arrow")), ArrowDataset)
    with pytest.raises(DataError, match="format 1; this version reads format 2 here"):
        ArrowSamples(str(DEMO / "digits-test.arrow"))


@pytest.mark.parametrize(
    ("label", "sample", "words"),
    [
        (3, {"x": torch.ones(2)}, "label 3 is none of the 2 classes"),
        ("z", {"x": torch.ones(2)}, "label 'z'"),
        (0, {"x": torch.ones(2, 2)}, "stand beside those before"),
        (0, {"x": torch.tensor([1, float("nan")])}, "sample 1 has NaN"),
        (0, {"x": [1.0]}, "a list as 'x'"),
        (0, {"x": torch.ones(2).bfloat16()}, "stand beside"),
    ],
)
def test_what_a_writer_refuses(label: Any, sample: Any, words: str, tmp_path: Path) -> None:
    def write() -> None:
        with SampleWriter(tmp_path / "s.arrow", ["a", "b"]) as writer:
            writer.add("b", {"x": torch.ones(2)})
            writer.add(label, sample)

    with pytest.raises(DataError, match=words):
        write()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("sample", "words"),
    [
        (torch.ones(2).bfloat16(), r"input: bfloat16 \(2\) cannot be written"),
        (torch.ones(3, 0), r"input: float32 \(3, 0\) cannot be written"),
        ({"label": torch.ones(1)}, "no tensor is named 'label'"),
    ],
)
def test_tensors_that_cannot_be_written(sample: Any, words: str, tmp_path: Path) -> None:
    with SampleWriter(tmp_path / "s.arrow", ["a"]) as writer:
        with pytest.raises(DataError, match=words):
            writer.add(0, sample)
        writer.add(0, torch.ones(1))


def test_a_writer_that_cannot_end(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no samples were added"), SampleWriter(tmp_path / "s.arrow", ["a"]):
        pass
    with pytest.raises(DataError, match="names that differ"):
        SampleWriter(tmp_path / "s.arrow", ["a", "a"])
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(DataError, match="cannot be written: "),
        SampleWriter(tmp_path / "file" / "s.arrow", ["a"]) as writer,
    ):
        writer.add(0, torch.ones(1))

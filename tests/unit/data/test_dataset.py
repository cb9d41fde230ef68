"""Data sets on disk, and data sets of users."""

from __future__ import annotations

import io
import json
import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from arrow_files import INFO, write_arrow
from cohorts import write_images
from PIL import Image

from kdcl_dist.data.dataset import ArrowDataset, Info, fingerprint
from kdcl_dist.data.describe import describe
from kdcl_dist.data.importers.digits import import_digits
from kdcl_dist.data.sources.opening import open_dataset
from kdcl_dist.data.writer import write_dataset
from kdcl_dist.errors import DataError
from kdcl_dist.utils.data_specs import DEMO


def test_the_shipped_digits_are_what_the_importer_writes(tmp_path: Path) -> None:
    for path in import_digits(tmp_path):
        assert path.read_bytes() == (DEMO / path.name).read_bytes()
    train, test = (ArrowDataset(str(tmp_path / f"digits-{part}.arrow")) for part in ("train", "test"))
    assert len(train) + len(test) == 1797
    assert np.bincount(test.labels).min() >= 34
    seen = {train.image(i).numpy().tobytes() for i in range(len(train))}
    assert sum(test.image(i).numpy().tobytes() in seen for i in range(len(test))) == 0
    assert "CC BY 4.0" in dict(describe(train))["license"]


def test_round_trip_and_shards(tmp_path: Path) -> None:
    rows = [(i % 2, bytes([i, 1, 2, 3])) for i in range(5)]
    write_dataset(tmp_path / "b.arrow", rows[3:], INFO)
    write_dataset(tmp_path / "a.arrow", rows[:3], INFO)
    found = ArrowDataset(str(tmp_path))
    assert found.labels.tolist() == [0, 1, 0, 1, 0]
    (tmp_path / "._a.arrow").write_bytes(b"\0\5\x16\7")
    assert ArrowDataset(str(tmp_path)).files == found.files, "hidden files are no shards"
    assert [bytes(found.data(i)) for i in range(5)] == [image for _, image in rows]
    assert found.image(4).tolist() == [[[4, 1], [2, 3]]]
    assert pickle.loads(pickle.dumps(found)).image(4).equal(found.image(4))
    image = found.image(0)
    image += 100
    assert found.image(0)[0, 0, 0] == 0, "an image handed out is a copy"
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("channels", [1, 3])
def test_encoded_images(tmp_path: Path, kind: str, channels: int) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (6, 4), (200, 100, 50)).save(buffer, kind)
    info = Info(("x",), "encoded", channels, None, (0.5,) * channels, (0.5,) * channels)
    write_dataset(tmp_path / "e.arrow", [(0, buffer.getvalue()), (0, b"no image")], info)
    found = ArrowDataset(str(tmp_path / "e.arrow"))
    assert found.image(0).shape == (channels, 4, 6)
    with pytest.raises(DataError, match="row 1"):
        found.image(1)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "no such file"),
        (b"", "not an Arrow IPC file"),
        (b"plain text, no Arrow", "not an Arrow IPC file"),
    ],
)
def test_what_is_no_data_set(tmp_path: Path, content: bytes | None, words: str) -> None:
    path = tmp_path / "d.arrow"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=words) as caught:
        open_dataset(str(path))
    assert "\n" not in str(caught.value)


def test_a_truncated_file_is_recognised_wherever_it_is_cut(tmp_path: Path) -> None:
    whole = write_images(tmp_path / "w.arrow", 20).read_bytes()
    path = tmp_path / "cut.arrow"
    for length in range(0, len(whole), 37):
        path.write_bytes(whole[:length])
        with pytest.raises(DataError, match=r"cut\.arrow"):
            ArrowDataset(str(path))


def test_bad_content_is_named(tmp_path: Path) -> None:
    schema, image = INFO.schema(), b"abcd"

    def refused(words: str, schema: pa.Schema, labels: list[int]) -> None:
        with pytest.raises(DataError, match=words):
            ArrowDataset(write_arrow(tmp_path / "d.arrow", schema, labels, [image] * len(labels)))

    def changed(**fields: object) -> pa.Schema:
        metadata = json.loads(schema.metadata[b"kdcl"]) | fields
        return schema.with_metadata({"kdcl": json.dumps(metadata)})

    refused(r"row 2 is 7, but there are 2 classes", schema, [0, 1, 7])
    refused(r"row 0 is -1", schema, [-1])
    refused("no samples", schema, [])
    refused("no 'kdcl' metadata", schema.remove_metadata(), [0])
    refused("format 9", changed(format=9), [0])
    refused("cannot be read", changed(surprise=1), [0])
    refused("cannot be read", schema.with_metadata({"kdcl": "{"}), [0])
    refused("names a class twice", changed(classes=["x", "x"]), [0])
    refused("columns or metadata", changed(shape=[1, 3, 3]), [0])
    empty = tmp_path / "folder"
    empty.mkdir()
    with pytest.raises(DataError, match=r"no \.arrow file"):
        ArrowDataset(str(empty))


def test_own_data_sets_by_import_string(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_data.py").write_text(
        "import numpy as np, torch\n"
        "class Own:\n"
        "    labels = np.array([0, 1, 1]); classes = ('x', 'y'); channels = 1; mean = (0.5,); std = (0.5,)\n"
        "    def __len__(self): return 3\n"
        "    def image(self, index): return torch.full((1, 8, 8), index, dtype=torch.uint8)\n"
        "class Outside(Own):\n"
        "    labels = np.array([0, 1, 2])\n"
        "def broken(): raise OSError('no disk')\n"
        "def leaves(): raise SystemExit('no licence')\n"
        "class Twice(Own): classes = ('x', 'x')\n"
        "class Floats(Own):\n"
        "    def image(self, index): return torch.full((1, 8, 8), 255.0)\n"
        "class Whole(Own):\n"
        "    def image(self, index): return torch.full((1, 8, 8), 7)\n"
        "class Nan(Own):\n"
        "    def image(self, index): return torch.full((1, 8, 8), torch.nan)\n"
        "class Last(Own):\n"
        "    def image(self, index): return torch.zeros(8, 8, 1)\n"
        "class Array(Own):\n"
        "    def image(self, index): return np.zeros((1, 8, 8))\n"
        "class Fails(Own):\n"
        "    def image(self, index): raise KeyError(index)\n"
        "class Unsized(Own):\n"
        "    def __len__(self): raise OSError('gone')\n"
        "def nothing(): return 3\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert len(open_dataset("own_data:Own")) == 3
    assert fingerprint(open_dataset("own_data:Own")) != fingerprint(
        ArrowDataset(str(DEMO / "digits-test.arrow"))
    )
    for name, words in (
        ("Outside", "row 2 is 2"),
        ("broken", "no disk"),
        ("nothing", "lacks"),
        ("leaves", "SystemExit: no licence"),
        ("Twice", "classes names 'x' more than once"),
        ("Floats", r"image\(0\) is torch\.float32 with pixels from 255 to 255"),
        ("Whole", r"image\(0\) is torch\.int64 with pixels from 7 to 7"),
        ("Nan", "pixels from nan to nan"),
        ("Last", r"has shape \(8, 8, 1\), height, width, channels"),
        ("Array", "gives a ndarray, not a torch.Tensor"),
        ("Fails", r"image\(0\) fails: KeyError"),
        ("Unsized", "OSError: gone"),
        ("missing", "no attribute"),
    ):
        with pytest.raises(DataError, match=words):
            open_dataset(f"own_data:{name}")
    with pytest.raises(DataError, match="No module"):
        open_dataset("no_such_module:Own")

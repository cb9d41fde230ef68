"""Tables and Hugging Face's folders as data sets: what is found, what is kept, and what is refused."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner
from importing import content, encoded, imported, make_special, run
from importing import refused as import_refused

from kdcl_dist.cli import kdcl
from kdcl_dist.config.data import Data
from kdcl_dist.data.dataset import ArrowDataset, ArrowSamples, fingerprint
from kdcl_dist.data.samples import named
from kdcl_dist.data.sources import table_set
from kdcl_dist.data.sources.cache import cache_folder
from kdcl_dist.data.sources.opening import DataSets, open_dataset
from kdcl_dist.errors import DataError

ROWS = 30
NUMBERS = {
    "width": [0.5 * row for row in range(ROWS)],
    "count": list(range(ROWS)),
    "flag": [row % 3 == 0 for row in range(ROWS)],
}
TEXTS = [("sheep", "cat", "horse")[row % 3] for row in range(ROWS)]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def write(path: Path, table: pa.Table) -> str:
    if path.suffix == ".parquet":
        pq.write_table(table, path)
    elif path.suffix == ".arrow":
        with pa.ipc.new_file(str(path), table.schema) as writer:
            writer.write_table(table, 7)
    elif path.suffix == ".csv":
        pa_csv.write_csv(table, path)
    elif path.suffix == ".tsv":
        pa_csv.write_csv(table, path, pa_csv.WriteOptions(delimiter="\t"))
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in table.to_pylist()))
    return str(path)


def save_to_disk(folder: Path, table: pa.Table, features: dict[str, Any], files: int = 2) -> str:
    """A folder as `Dataset.save_to_disk` of `datasets` writes it."""
    folder.mkdir(parents=True)
    names = [f"data-{number:05d}-of-{files:05d}.arrow" for number in range(files)]
    rows = -(-len(table) // files)
    for number, name in enumerate(names):
        with pa.ipc.new_stream(str(folder / name), table.schema) as writer:
            writer.write_table(table.slice(number * rows, rows))
    state = {"_data_files": [{"filename": name} for name in names], "_fingerprint": "0", "_split": "train"}
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "dataset_info.json").write_text(json.dumps({"features": features}))
    return f"hf:{folder}"


def refused(spec: str, words: str, **more: Any) -> None:
    began = time.monotonic()
    with pytest.raises(DataError, match=words) as caught:
        open_dataset(spec, **more)
    assert "\n" not in str(caught.value)
    assert time.monotonic() - began < 60
    assert not list(cache_folder().glob("*.arrow"))


@pytest.mark.parametrize("suffix", [".parquet", ".arrow", ".csv", ".tsv", ".jsonl", ".ndjson", ".json"])
def test_columns_of_numbers_are_one_vector(tmp_path: Path, suffix: str) -> None:
    found = open_dataset(write(tmp_path / f"t{suffix}", pa.table(NUMBERS | {"label": TEXTS})))
    assert isinstance(found, ArrowSamples)
    assert found.classes == ("cat", "horse", "sheep")
    assert found.labels.tolist() == [("cat", "horse", "sheep").index(text) for text in TEXTS]
    sample = found.sample(6)
    assert isinstance(sample, torch.Tensor)
    assert sample.dtype == torch.float32
    assert sample.tolist() == [3.0, 6.0, 1.0]
    assert found.mean["input"] == pytest.approx([np.mean(values) for values in NUMBERS.values()])


def test_the_same_rows_in_any_form_are_the_same_samples(tmp_path: Path) -> None:
    table = pa.table(NUMBERS | {"label": TEXTS})
    sets = [open_dataset(write(tmp_path / f"t.{suffix}", table)) for suffix in ("parquet", "csv", "jsonl")]
    for row in range(ROWS):
        tensors = [named(each.sample(row)) for each in sets]  # type: ignore[union-attr]
        assert all(torch.equal(tensors[0]["input"], each["input"]) for each in tensors)


def test_lists_are_tensors_of_their_own(tmp_path: Path) -> None:
    ids = [list(range(1, 2 + row % 5)) for row in range(ROWS)]
    columns = {"input_ids": ids, "embedding": [[row / 2, 1.0] for row in range(ROWS)], "label": [0, 1] * 15}
    alone = open_dataset(write(tmp_path / "a.parquet", pa.table(columns).select(["input_ids", "label"])))
    assert isinstance(alone, ArrowSamples)
    assert [each.tolist() for each in map(alone.sample, range(ROWS))] == ids  # type: ignore[union-attr]
    assert str(alone.info.layout) == "tensor of input: int64 (any)"
    several = open_dataset(write(tmp_path / "s.jsonl", pa.table(columns | {"width": [0.5] * ROWS})))
    assert isinstance(several, ArrowSamples)
    assert {name: tensor.tolist() for name, tensor in named(several.sample(3)).items()} == {
        "numbers": [0.5],
        "input_ids": [1, 2, 3, 4],
        "embedding": [1.5, 1.0],
    }


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("RGB", 3)])
@pytest.mark.parametrize("struct", [False, True])
def test_a_column_of_images(tmp_path: Path, mode: str, channels: int, struct: bool) -> None:
    images = [encoded("PNG", mode, seed=seed) for seed in range(6)]
    column = [{"bytes": image, "path": None} for image in images] if struct else images
    told: list[str] = []
    table = pa.table({"image": column, "label": [0, 1, 2] * 2, "other": ["x"] * 6})
    data = Data(train=write(tmp_path / "t.parquet", table), test="unused")
    found = DataSets(data, told.append).open("train")
    assert isinstance(found, ArrowDataset)
    assert found.channels == channels
    assert [bytes(found.data(row)) for row in range(6)] == images
    pixels = torch.stack([found.image(row) for row in range(6)]).double() / 255
    assert found.mean == pytest.approx(pixels.mean((0, 2, 3)).tolist())
    assert found.std == pytest.approx(pixels.std((0, 2, 3), correction=0).tolist())
    assert "not used: 'other'" in told[0]


def test_a_folder_of_hugging_face(tmp_path: Path) -> None:
    features = {"text": {"_type": "Sequence"}, "label": {"names": ["neg", "pos"], "_type": "ClassLabel"}}
    table = pa.table({"text": [[1, 2], [3], [4, 5, 6]], "label": [1, 0, 1]})
    spec = save_to_disk(tmp_path / "dict" / "train", table, features)
    found = open_dataset(spec)
    assert isinstance(found, ArrowSamples)
    assert found.classes == ("neg", "pos")
    assert found.labels.tolist() == [1, 0, 1]
    assert named(found.sample(2))["input"].tolist() == [4, 5, 6]
    (tmp_path / "dict" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    with pytest.raises(DataError, match=r"name one, as in hf:.*dict/train"):
        open_dataset(f"hf:{tmp_path}/dict")
    with pytest.raises(DataError, match=r"write it as hf:.*dict/train"):
        open_dataset(f"{tmp_path}/dict/train")


def test_a_folder_of_parquet_files(tmp_path: Path) -> None:
    for number in range(3):
        write(tmp_path / f"part-{number}.parquet", pa.table({"x": [number + 0.5] * 2, "label": [0, 1]}))
    found = open_dataset(str(tmp_path))
    assert [found.sample(row).item() for row in range(6)] == [0.5, 0.5, 1.5, 1.5, 2.5, 2.5]  # type: ignore[union-attr]
    write(tmp_path / "part-3.parquet", pa.table({"y": [1.5], "label": [0]}))
    with pytest.raises(DataError, match=r"part-3\.parquet: columns differ from those of part-0\.parquet"):
        open_dataset(str(tmp_path))


def test_the_test_set_follows_the_training_set(tmp_path: Path) -> None:
    train = write(tmp_path / "train.parquet", pa.table(NUMBERS | {"kind": TEXTS}))
    swapped = pa.table(
        {"kind": ["sheep", "cat"], "flag": [0, 1], "count": [7, 8], "width": [1, 2], "id": [1, 2]}
    )
    test = write(tmp_path / "test.csv", swapped)
    sets = DataSets(Data(train=train, test=test, label="kind"))
    sets.open("train")
    found = sets.open("test")
    assert found.classes == ("cat", "horse", "sheep")
    assert found.labels.tolist() == [2, 0]
    assert named(found.sample(0))["input"].tolist() == [1.0, 7.0, 0.0]  # type: ignore[union-attr]

    def refuses(table: pa.Table, words: str) -> None:
        other = DataSets(Data(train=train, test=write(tmp_path / "other.parquet", table), label="kind"))
        other.open("train")
        with pytest.raises(DataError, match=words):
            other.open("test")

    refuses(swapped.drop(["flag"]), "no column 'flag', which data.train has; it has 'kind', 'count'")
    refuses(
        swapped.set_column(0, "kind", pa.array(["cow", "cat"])), r"'cow', which is not one of the 3 classes"
    )
    refuses(
        swapped.set_column(3, "width", pa.array(["a", "b"])), "'width' is string; in data.train it is numbers"
    )


def test_what_was_found_is_told_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "t.csv"
    told: list[str] = []

    def opened() -> Any:
        return DataSets(Data(train=str(path), test="unused"), told.append).open("train")

    write(path, pa.table(NUMBERS | {"label": TEXTS, "": range(ROWS)}))
    first = opened()
    assert told[0].startswith(
        "data.train: t.csv: 30 samples, no images (normalised by data.normalise only), of 3 numbers"
    )
    assert "3 classes (cat, horse, sheep) in column 'label'; not used: ''; found in " in told[0]
    with monkeypatch.context() as patch:
        patch.setattr(table_set, "plan_use", None)
        assert fingerprint(opened()) == fingerprint(first)
    assert "known from" in told[1]
    write(path, pa.table(NUMBERS | {"label": TEXTS[::-1]}))
    assert opened().labels.tolist() == first.labels[::-1].tolist()
    (kept,) = cache_folder().glob("*.arrow")
    kept.write_bytes(kept.read_bytes()[:-100])
    assert opened().labels.tolist() == first.labels[::-1].tolist()
    for beside in cache_folder().glob("*.json"):
        beside.write_text("{")
    assert opened().labels.tolist() == first.labels[::-1].tolist()
    assert len(list(cache_folder().iterdir())) == 2


def test_a_cache_of_another_host_has_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for host in "ab":
        (tmp_path / host).mkdir()
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / host / "cache"))
        found.append(open_dataset(write(tmp_path / host / "t.parquet", pa.table(NUMBERS | {"label": TEXTS}))))
    assert fingerprint(found[0]) == fingerprint(found[1])
    assert found[0].path != found[1].path  # type: ignore[union-attr]


def test_several_open_a_table_at_once(tmp_path: Path) -> None:
    path = write(tmp_path / "t.parquet", pa.table(NUMBERS | {"label": TEXTS}))
    with ThreadPoolExecutor(8) as pool:
        assert len({fingerprint(each) for each in pool.map(open_dataset, [path] * 8)}) == 1
    assert len(list(cache_folder().iterdir())) == 2


def test_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "t.parquet", pa.table(NUMBERS | {"label": TEXTS}))
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(
        DataError, match=r"the cache cannot be written: .*; name another folder in .* XDG_CACHE_HOME"
    ):
        open_dataset(path)


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"x": [1, 2], "y": [0, 1]}, "no column label, target or class for the label; it has 'x', 'y'"),
        ({"x": [1, 2], "label": [0, 1], "class": [0, 1]}, "'label', 'class' may both be the label"),
        ({"x": [1, 2], "label": [0.5, 1]}, "column 'label' is double; a label must be a whole number, text"),
        ({"x": [1, 2], "label": ["a", None]}, "column 'label' is null in row 1"),
        ({"x": [1, None], "label": ["a", "b"]}, "column 'x' is null in row 1"),
        (
            {"x": [float("nan"), 1], "label": ["a", "b"]},
            "column 'x' is NaN, infinite or beyond float32 in row 0",
        ),
        ({"x": [1, 1e300], "label": ["a", "b"]}, "column 'x' is NaN, infinite or beyond float32 in row 1"),
        ({"text": ["so", "no"], "label": ["a", "b"]}, "column 'text' is text .*: make token ids of it"),
        ({"label": ["a", "b"]}, "no column but 'label': there is nothing to learn from"),
        ({"x": [[1], []], "label": ["a", "b"]}, "column 'x' has an empty list in row 1"),
        ({"x": [[1], [2, None]], "label": ["a", "b"]}, "column 'x' has a list with a null in row 1"),
        (
            {"x": [[1.5], [float("inf")]], "label": ["a", "b"]},
            "column 'x' has NaN or infinite numbers in row 1",
        ),
        ({"x": [["a"], ["b"]], "label": ["a", "b"]}, "neither a number, a list of numbers nor an image"),
        ({"x": [b"no", b"image"], "label": ["a", "b"]}, "the image in row 0: not a JPEG or PNG image"),
        ({"x": [1.5], "label": ["a"]}, ""),
    ],
)
def test_tables_that_are_no_data_set(tmp_path: Path, columns: dict[str, Any], words: str) -> None:
    path = write(tmp_path / "t.parquet", pa.table(columns))
    if words:
        refused(path, words)
    else:  # one class is refused where the training data as a whole is checked
        assert len(open_dataset(path).classes) == 1


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("t.csv", b"", "cannot be read as csv"),
        ("t.csv", b"a,label\n1,2,3\n", "Expected 2 columns, got 3"),
        ("t.csv", b"a,a,label\n1,2,3\n", "column 'a' is there more than once"),
        ("t.csv", b"," * 200_000 + b"\n", "names more than 10,000 columns"),
        ("t.csv", b"x" * 3_000_000, "names more than 10,000 columns"),
        ("t.csv", b"a,label\n", "column 'label' has no value: the table has no rows"),
        ("t.jsonl", b"", "it has no lines"),
        ("t.jsonl", b'{"x": 1, "label": 0}\n{"x": ', "line 2 is not JSON"),
        ("t.jsonl", b'[{"x": 1, "label": 0}]\n', "line 1 is no object: write one a line"),
        ("t.jsonl", b'{"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}\n", "line 1 is not JSON"),
        ("t.jsonl", b'{"x":' + b"[" * 300 + b"]" * 300 + b"}\n", "cannot be read|neither|no column"),
        ("t.jsonl", b'{"x": 1, "label": 0}\n{"x": "a", "label": 0}\n', "cannot be read as JSON lines"),
        ("t.jsonl", b'{"x": ' + b"9" * 40 + b', "label": 0}\n', "cannot be read as JSON lines"),
        ("t.parquet", b"PAR1" * 100, "cannot be read as parquet"),
        ("t.json", b"\xff\xfe\x00", "line 1 is not JSON"),
    ],
)
def test_damaged_files(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    (tmp_path / name).write_bytes(content)
    refused(str(tmp_path / name), words)


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".jsonl"])
@pytest.mark.parametrize("kind", ["fifo", "device", "socket"])
def test_what_is_no_regular_file(tmp_path: Path, kind: str, suffix: str) -> None:
    make_special(tmp_path / f"t{suffix}", kind)
    refused(str(tmp_path / f"t{suffix}"), "not a regular file")


def test_truncated_files(tmp_path: Path) -> None:
    table = pa.table({"x": [[1, 2, 3]] * 50, "label": ["a", "b"] * 25})
    for name in ("t.parquet", "t.arrow"):
        whole = Path(write(tmp_path / name, table)).read_bytes()
        for length in range(0, len(whole), 101):
            (tmp_path / name).write_bytes(whole[:length])
            refused(str(tmp_path / name), rf"t\.{name[2:]}: ")


def test_lists_that_unfold_without_end(tmp_path: Path) -> None:
    """A run of one value takes a few bytes in Parquet, and may stand for any number."""
    rows = pa.ListArray.from_arrays(pa.array([0, 3_000_000]), pa.array(np.zeros(3_000_000, np.int64)))
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"x": rows, "label": [0]}), path, compression="zstd", data_page_size=1 << 30)
    assert path.stat().st_size < 100_000
    refused(str(path), "values in 1 rows|would unfold to")


def test_columns_that_a_folder_of_hugging_face_names_wrongly(tmp_path: Path) -> None:
    table = pa.table({"x": [1.5, 2.5], "label": [0, 1]})
    spec = save_to_disk(tmp_path / "set", table, {}, 1)
    state = tmp_path / "set" / "state.json"
    for text, words in (
        ("{}", "it names no files beside it"),
        ('{"_data_files": [{"filename": "../t.arrow"}]}', "it names no files beside it"),
        ('{"_data_files": [{"filename": "/etc/passwd"}]}', "it names no files beside it"),
        ('{"_data_files": [{}]}', "no such|No such|not a regular"),
        ("[" * 100_000, "cannot be read"),
        ("[]", "it is no JSON object"),
    ):
        state.write_text(text)
        refused(spec, words)
    state.unlink()
    refused(spec, r"state\.json: cannot be read: .*; give the folder that save_to_disk wrote")
    refused("hf:nowhere", r"nowhere/state\.json: cannot be read")


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_importing_a_table_of_numbers(tmp_path: Path, suffix: str) -> None:
    source = Path(write(tmp_path / f"all{suffix}", pa.table(NUMBERS | {"label": TEXTS})))
    out = imported("table", source, "--test-fraction", "0.2", "--seed", "3")
    train, test = (open_dataset(str(out / f"{split}.arrow")) for split in ("train", "test"))
    assert np.bincount(train.labels).tolist() == [8, 8, 8]
    assert np.bincount(test.labels).tolist() == [2, 2, 2]
    assert train.classes == test.classes == ("cat", "horse", "sheep")
    rows = [each.sample(row)[1].item() for each in (train, test) for row in range(len(each))]  # type: ignore[union-attr,index]
    assert sorted(rows) == list(range(ROWS))
    again = imported_again(source, tmp_path / "again")
    assert content(again) == content(out)


def imported_again(source: Path, folder: Path) -> Path:
    assert run("table", source, folder, "--test-fraction", "0.2", "--seed", "3").exit_code == 0
    return folder


def test_importing_tables_of_numbers_in_splits(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    write(source / "train-0.csv", pa.table({"x": [1.5, 2.5], "y": [3, 4], "label": ["b", "a"]}))
    write(source / "test.csv", pa.table({"y": [5], "x": [0.5], "label": ["b"]}))
    out = imported("table", source)
    test = open_dataset(str(out / "test.arrow"))
    assert test.classes == ("a", "b")
    assert test.sample(0).tolist() == [0.5, 5.0]  # type: ignore[union-attr]
    import_refused("table", source, "there is another split already", "--val-fraction", "0.5")
    import_refused("table", source / "test.csv", "no class has two rows", "--test-fraction", "0.5")
    import_refused(
        "table", source / "test.csv", "no column 'kind' for the label; it has 'y', 'x'", "--label", "kind"
    )
    (source / "train-0.csv").write_bytes(b"")
    import_refused("table", source, "train-0.csv: cannot be read as csv")


def test_describe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "t.csv", pa.table(NUMBERS | {"kind": TEXTS}))
    result = CliRunner().invoke(kdcl, ["data", "describe", path, "--label", "kind"])
    assert result.exit_code == 0, result.output
    assert "3 classes (cat, horse, sheep) in column 'kind'; found in" in result.output
    assert "classes          3: cat, horse, sheep" in result.output
    assert "\\n" not in result.output
    assert "float32 (3), mean 7.25" in result.output
    (tmp_path / "fake.py").write_text(
        "from torchvision.datasets import FakeData\nimages = FakeData(9, (3, 8, 8), 4)\n"
        "import torch\nsamples = [(torch.zeros(5), 0), (torch.ones(5), 1)]\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    for name, words in (
        ("images", "the first is 3x8x8 torch.uint8, channels: 3"),
        ("samples", "float32 (5), mean 0.5"),
    ):
        result = CliRunner().invoke(kdcl, ["data", "describe", f"fake:{name}"])
        assert result.exit_code == 0, result.output
        assert words in result.output
    result = CliRunner().invoke(kdcl, ["data", "describe", path])
    assert result.exit_code == 2
    assert "no column label, target or class for the label; it has 'width'" in result.output

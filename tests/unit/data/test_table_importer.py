"""Importing tables of encoded images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from importing import encoded, imported, make_special, refused

from kdcl_dist.data.dataset import ArrowDataset

IMAGES = [encoded("PNG", seed=i) for i in range(6)]


def columns(labels: list[Any], images: list[Any] | None = None, struct: bool = True) -> pa.Table:
    images = IMAGES[: len(labels)] if images is None else images
    rows = [{"bytes": image, "path": None} for image in images] if struct else images
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())]) if struct else pa.binary()
    return pa.table(
        {"label": pa.array(labels), "image": pa.array(rows, kind), "other": list(range(len(labels)))}
    )


@pytest.mark.parametrize("struct", [False, True])
def test_parquet(tmp_path: Path, struct: bool) -> None:
    source = tmp_path / "source"
    source.mkdir()
    pq.write_table(columns(["b", "a"], struct=struct), source / "train-00000-of-00002.parquet")
    pq.write_table(columns(["c"], struct=struct), source / "train-00001-of-00002.parquet", row_group_size=1)
    pq.write_table(columns(["a"], struct=struct), source / "test-00000-of-00001.parquet")
    out = imported("table", source)
    train, test = (ArrowDataset(str(out / split)) for split in ("train", "test"))
    assert train.classes == test.classes == ("a", "b", "c")
    assert train.labels.tolist() == [1, 0, 2]
    assert [bytes(train.data(i)) for i in range(3)] == [IMAGES[0], IMAGES[1], IMAGES[0]]
    assert train.mean == test.mean


@pytest.mark.parametrize("stream", [False, True])
def test_arrow_files_with_class_names(tmp_path: Path, stream: bool) -> None:
    table = columns([2, 0])
    features = {"label": {"names": ["x", "y", "z"], "_type": "ClassLabel"}}
    table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    new = pa.ipc.new_stream if stream else pa.ipc.new_file
    with new(str(tmp_path / "some.arrow"), table.schema) as writer:
        writer.write_table(table)
    out = imported("table", tmp_path / "some.arrow")
    train = ArrowDataset(str(out / "train"))
    assert train.classes == ("x", "y", "z")
    assert train.labels.tolist() == [2, 0]
    assert not (out / "test").exists()


def test_whole_numbers_and_own_names(tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "fit").mkdir(parents=True)
    table = columns([7, 10, 7], struct=False).rename_columns(["kind", "picture", "other"])
    pq.write_table(table, source / "fit" / "0000.parquet")
    pq.write_table(table, source / "check.parquet")
    names = ("--image", "picture", "--label", "kind", "--train", "fit", "--test", "check*")
    train = ArrowDataset(str(imported("table", source, *names) / "train"))
    assert train.classes == ("7", "10")
    assert train.labels.tolist() == [0, 1, 0]


def test_hidden_twins_are_no_tables(tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "train").mkdir(parents=True)
    pq.write_table(columns([0, 1]), source / "train" / "0.parquet")
    (source / "train" / "._0.parquet").write_bytes(b"\0\5\x16\7")
    (source / "._train.parquet").write_bytes(b"\0\5\x16\7")
    assert len(ArrowDataset(str(imported("table", source, "--train", "*") / "train"))) == 2


@pytest.mark.parametrize("kind", ["fifo", "device", "socket"])
@pytest.mark.parametrize("name", ["train.parquet", "train.arrow", "train/0.parquet"])
def test_what_is_no_regular_file(kind: str, name: str, tmp_path: Path) -> None:
    (tmp_path / "source" / name).parent.mkdir(parents=True)
    make_special(tmp_path / "source" / name, kind)
    refused(
        "table",
        tmp_path / "source",
        f"{name}: not Parquet or Arrow IPC, or damaged: ValueError: not a regular",
    )


def test_labels_in_two_spellings(tmp_path: Path) -> None:
    pq.write_table(columns(["caf\u00e9", "cafe\u0301"]), tmp_path / "t.parquet")
    refused("table", tmp_path / "t.parquet", r"the classes 'cafe\u0301' and 'caf\xe9' are both 'café'")
    source = tmp_path / "source"
    source.mkdir()
    pq.write_table(columns(["caf\u00e9", "tea"]), source / "train.parquet")
    pq.write_table(columns(["cafe\u0301", "tea"]), source / "test.parquet")
    refused("table", source, r"the classes 'cafe\u0301' and 'caf\xe9' are both 'café'")


def test_rows_that_cannot_be_decoded(tmp_path: Path) -> None:
    pq.write_table(columns([0, 1, 0], [IMAGES[0], IMAGES[1], b"x"]), tmp_path / "rows.parquet")
    out = imported("table", tmp_path / "rows.parquet")
    assert (out / "rejected.txt").read_text() == "rows.parquet row 2\tnot a JPEG or PNG image\n"
    assert len(ArrowDataset(str(out / "train"))) == 2


@pytest.mark.parametrize(
    ("table", "words"),
    [
        (columns([0, None]), "'label' is null in row 1"),
        (columns([0, 1], [IMAGES[0], None]), "'image' has no image bytes in row 1"),
        (columns([0, 1], [IMAGES[0], None], struct=False), "'image' has no image bytes in row 1"),
        (columns([0.5]), "column 'label' is double; it must be whole numbers or strings"),
        (columns([0]).drop(["image"]).set_column(1, "other", [["x"]]), "column 'other' is text (string)"),
        (columns([0]).rename_columns(["x", "image", "y"]), "no column 'label'; it has 'x', 'image', 'y'"),
        (columns([0]).drop(["image"]).rename_columns(["label", "image"]), "column 'image' is int64"),
        (columns([0]).slice(1), "the train files hold no rows"),
        (columns([0], [b"x"]), "none of 1 images"),
    ],
)
def test_tables_that_are_no_data_set(tmp_path: Path, table: pa.Table, words: str) -> None:
    pq.write_table(table, tmp_path / "t.parquet")
    refused("table", tmp_path / "t.parquet", words)


def test_table_files_that_do_not_fit(tmp_path: Path) -> None:
    source = tmp_path / "source"
    refused("table", source, "no such file or folder")
    source.mkdir()
    refused("table", source, "no .parquet or .arrow files match 'train*' (--train)")
    pq.write_table(columns([0, 1]), source / "train.parquet")
    pq.write_table(columns([0, -1]), source / "test.parquet")
    refused("table", source, "the test files have the label -1 in column 'label'")
    refused("table", source, "match 'nothing*' (--test)", "--test", "nothing*")
    refused("table", source, "matches --train and --test both", "--test", "t*")
    for pattern in ("", "/etc/*", "a\0b", "**x/../" + "y" * 5000):
        refused("table", source, " match", "--train", pattern)
    whole = (source / "train.parquet").read_bytes()
    for suffix in ("parquet", "arrow"):
        for data in (b"", b"text" * 100, whole[: len(whole) // 2]):
            (tmp_path / f"t.{suffix}").write_bytes(data)
            refused("table", tmp_path / f"t.{suffix}", "not Parquet or Arrow IPC, or damaged")
    damaged = bytearray(whole)
    damaged[20:200] = bytes(180)
    (tmp_path / "t.parquet").write_bytes(damaged)
    refused("table", tmp_path / "t.parquet", "t.parquet: not Parquet or Arrow IPC, or damaged")

"""A share of each class becomes the test set: of class folders, and of one table file."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from importing import content, encoded, imported, refused, run

from kdcl_dist.data.dataset import ArrowDataset
from kdcl_dist.data.decode import decode
from kdcl_dist.data.importers.held_out import HeldOut, share_of_each_class
from kdcl_dist.data.importers.imagefolder import ImageFolder
from kdcl_dist.data.importers.images import import_images
from kdcl_dist.errors import DataError

COUNTS = {"cat": 10, "dog": 5, "eel": 2, "fox": 1}


@pytest.fixture
def flat(tmp_path: Path) -> Path:
    """Class folders without train and val."""
    for name, count in COUNTS.items():
        for i in range(count):
            path = tmp_path / "source" / name / f"{i:02d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encoded("PNG", seed=ord(name[0]) * 100 + i))
    return tmp_path / "source"


def images(path: Path) -> list[bytes]:
    found = ArrowDataset(str(path))
    return [bytes(found.data(i)) for i in range(len(found))]


@given(
    st.lists(st.integers(-1, 4), max_size=60).map(lambda labels: np.array(labels, np.int64)),
    st.floats(0.01, 0.99),
    st.integers(0, 3),
)
def test_a_share_of_each_class(labels_N: np.ndarray, share: float, seed: int) -> None:
    rows = share_of_each_class(labels_N, share, seed)
    assert rows.tolist() == sorted(set(rows.tolist()))
    assert np.array_equal(rows, share_of_each_class(labels_N, share, seed))
    for label in range(-1, 5):
        count, held = int((labels_N == label).sum()), int((labels_N[rows] == label).sum())
        if label < 0 or count < 2:
            assert held == 0
        else:
            assert 1 <= held <= count - 1
            assert abs(held - share * count) <= 1


@pytest.mark.parametrize("split", ["test", "val"])
def test_class_folders(flat: Path, split: str) -> None:
    out = imported("imagefolder", flat, f"--{split}-fraction", "0.2")
    train, test = (ArrowDataset(str(out / name)) for name in ("train", split))
    assert train.classes == test.classes == tuple(COUNTS)
    assert np.bincount(train.labels).tolist() == [8, 4, 1, 1]
    assert np.bincount(test.labels).tolist() == [2, 1, 1]
    files = [file.read_bytes() for file in sorted(flat.glob("*/*"))]
    held = set(images(out / split))
    assert images(out / "train") == [data for data in files if data not in held]
    assert images(out / split) == [data for data in files if data in held]
    pixels = np.concatenate([decode(data, 3).reshape(-1, 3) for data in images(out / "train")]) / 255
    assert train.mean == test.mean == pytest.approx(pixels.mean(0), rel=1e-12)


def test_the_share_is_a_function_of_the_seed(flat: Path) -> None:
    def held(name: str, *more: str) -> dict[str, bytes]:
        out = flat.parent / name
        assert run("imagefolder", flat, out, "--workers", "0", "--test-fraction", "0.4", *more).exit_code == 0
        return content(out)

    assert held("a") == held("b", "--seed", "0") != held("c", "--seed", "1")


def test_the_rejected_are_named_by_their_paths(flat: Path) -> None:
    (flat / "cat" / "03.png").write_bytes(b"x")
    (flat / "dog" / "notes.txt").write_text("text")
    out = imported("imagefolder", flat, "--test-fraction", "0.5")
    lines = (out / "rejected.txt").read_text().splitlines()
    assert sorted(line.split("\t")[0] for line in lines) == ["cat/03.png", "dog/notes.txt"]


def test_train_and_test_folders(flat: Path) -> None:
    """Without a fraction, `test` stands for `val` where there is no `val`."""
    for split in ("train", "test"):
        shutil.copytree(flat, flat.parent / "both" / split)
    out = imported("imagefolder", flat.parent / "both")
    assert sorted(path.name for path in out.iterdir()) == ["test", "train"]
    assert images(out / "train") == images(out / "test")
    (flat.parent / "both" / "test" / "gnu").mkdir()
    refused("imagefolder", flat.parent / "both", "train and test have different classes: only in test: gnu")


def test_grey(flat: Path) -> None:
    out = imported("imagefolder", flat, "--test-fraction", "0.2", "--grey")
    train = ArrowDataset(str(out / "train"))
    assert train.channels == 1
    grey = [decode(data, 1) for data in images(out / "train")]
    assert all(np.array_equal(train.image(i)[0].numpy(), grey[i][..., 0]) for i in range(len(train)))
    pixels = np.concatenate([image.ravel() for image in grey]) / 255
    assert train.mean == pytest.approx([pixels.mean()], rel=1e-12)
    assert train.std == pytest.approx([pixels.std()], rel=1e-9)


def test_an_import_of_colours_does_not_go_on_in_grey(flat: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from kdcl_dist.data.importers import images as engine

    def interrupted(*_: object) -> str:
        raise KeyboardInterrupt

    arguments = ("imagefolder", flat, flat.parent / "out", "--workers", "0", "--test-fraction")
    with monkeypatch.context() as patch:
        patch.setattr(engine, "write_dataset", interrupted)
        assert run(*arguments, "0.2").exit_code == 130
    for more in (("0.2", "--grey"), ("0.2", "--seed", "1"), ("0.3",)):
        assert "other options; delete it" in run(*arguments, *more).output
    assert run(*arguments, "0.2").exit_code == 0


def test_folders_that_have_no_share(flat: Path) -> None:
    refused(
        "imagefolder", flat, "it has no folder 'train'; if the folders in it are the classes, say --test-fr"
    )
    refused(
        "imagefolder",
        flat,
        "choose one of --test-fraction and --val-fraction",
        *("--test-fraction", "0.2", "--val-fraction", "0.2"),
    )
    for name in ("cat", "dog", "eel"):
        shutil.rmtree(flat / name)
    refused(
        "imagefolder", flat, "no class of images of the folder 'source' has two", "--test-fraction", "0.2"
    )
    (flat / "train").mkdir()
    refused("imagefolder", flat, f"import {flat / 'train'} to divide", "--test-fraction", "0.2")
    (flat / "train").rmdir()
    shutil.rmtree(flat / "fox")
    refused(
        "imagefolder", flat, "it holds no folder, of which each would be a class", "--test-fraction", "0.2"
    )


@pytest.mark.parametrize("fraction", ["0", "1", "-1", "1.5", "nan", "inf", "x"])
def test_fractions_that_are_none(flat: Path, fraction: str) -> None:
    result = run("imagefolder", flat, flat.parent / "out", "--test-fraction", fraction)
    assert result.exit_code == 2
    assert "--test-fraction" in result.output
    assert "Traceback" not in result.output


def test_a_source_that_grows_meanwhile(flat: Path) -> None:
    source = HeldOut(ImageFolder(flat, flat=True), "test", 0.2, seed=0)

    def on_progress(what: str, done: int, total: int) -> None:
        if what == "train":
            (flat / "cat" / "more.png").write_bytes(encoded())

    with pytest.raises(DataError, match="changed during the import: it has more images"):
        import_images(source, flat.parent / "out", workers=0, on_progress=on_progress)


def test_one_table_file(tmp_path: Path) -> None:
    data = [encoded("PNG", seed=i) for i in range(12)]
    labels = ["b", "a", "c"] * 4
    pq.write_table(pa.table({"image": data, "label": labels}), tmp_path / "t.parquet")
    out = imported("table", tmp_path / "t.parquet", "--test-fraction", "0.25", "--grey")
    train, test = (ArrowDataset(str(out / split)) for split in ("train", "test"))
    assert np.bincount(train.labels).tolist() == [3, 3, 3]
    assert np.bincount(test.labels).tolist() == [1, 1, 1]
    assert (train.channels, train.classes) == (1, ("a", "b", "c"))
    found = {image: label for split in ("train", "test") for image, label in pairs(out / split)}
    assert found == dict(zip(data, labels, strict=True))


def pairs(path: Path) -> list[tuple[bytes, str]]:
    found = ArrowDataset(str(path))
    return [(bytes(found.data(i)), found.classes[label]) for i, label in enumerate(found.labels)]


def test_a_table_that_has_a_test_set(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    table = pa.table({"image": [encoded()] * 4, "label": [0, 1, 0, 1]})
    pq.write_table(table, source / "train.parquet")
    pq.write_table(table, source / "val.parquet")
    refused(
        "table", source, "it has test images already; leave out --test-fraction", "--test-fraction", "0.5"
    )

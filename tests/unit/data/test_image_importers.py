"""Importing folders of encoded images; checks, journal and shards of all imports of encoded images."""

from __future__ import annotations

import multiprocessing as mp
import os
import shutil
import subprocess
import sys
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from cohorts import ROOT
from hypothesis import given
from hypothesis import strategies as st
from importing import claimed, content, encoded, imported, png16, refused, run
from torchvision.datasets import ImageFolder as TorchvisionFolder

from kdcl_dist.cli import kdcl
from kdcl_dist.data.dataset import ArrowDataset
from kdcl_dist.data.decode import decode
from kdcl_dist.data.importers import images as engine
from kdcl_dist.data.importers.check import Item, Workers
from kdcl_dist.data.importers.class_names import check_spelling
from kdcl_dist.data.importers.imagefolder import ImageFolder
from kdcl_dist.data.importers.images import import_images
from kdcl_dist.errors import DataError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes, seven training and two validation images."""
    for name in ("train/cat", "train/dog", "val/cat", "val/dog"):
        for i in range(1 if name.startswith("val") else 3 + name.endswith("dog")):
            path = tmp_path / "source" / name / f"{i}.{'JPEG' if i % 2 else 'png'}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encoded("JPEG" if i % 2 else "PNG", seed=len(name) + i))
    return tmp_path / "source"


@pytest.mark.parametrize("workers", ["0", "2"])
def test_a_folder(folder: Path, workers: str) -> None:
    (folder / "classes.txt").write_text("ignored")
    result = run("imagefolder", folder, folder.parent / "out", "--workers", workers)
    assert result.exit_code == 0, result.output
    assert "images imported: 9, rejected: 0\n" in result.output
    assert "train: 7 of 7 images" in result.output
    train, val = (ArrowDataset(str(folder.parent / "out" / split)) for split in ("train", "val"))
    assert train.classes == val.classes == ("cat", "dog")
    assert train.labels.tolist() == [0] * 3 + [1] * 4
    files = sorted((folder / "train").glob("*/*"))
    assert [bytes(train.data(i)) for i in range(7)] == [file.read_bytes() for file in files]
    pixels = np.concatenate([decode(file.read_bytes(), 3).reshape(-1, 3) for file in files]) / 255
    assert train.mean == val.mean == pytest.approx(pixels.mean(0), rel=1e-12)
    assert train.std == val.std == pytest.approx(pixels.std(0), rel=1e-9)
    assert CliRunner().invoke(kdcl, ["data", "inspect", str(folder.parent / "out/train")]).exit_code == 0
    assert not mp.active_children()


def test_what_cannot_be_decoded_is_named_and_counted(folder: Path) -> None:
    whole = encoded("JPEG", size=(200, 200))
    bad = {
        "train/cat/corrupt.png": b"\x89PNG\r\n\x1a\n" + bytes(100),
        "train/cat/truncated.JPG": whole[:-2000],
        "train/dog/empty.jpeg": b"",
        "train/dog/notes.txt": b"text",
        "train/dog/of many pixels.png": claimed("PNG", 13000, 13000),
        "val/dog/üñï 猫\n.png": b"x",
    }
    good = {
        "train/cat/cmyk.jpg": encoded("JPEG", "CMYK"),
        "train/cat/deep.PNG": png16(40000),
        "train/dog/größe 犬.Jpeg": encoded(),
        "train/dog/a png by its content.JPEG": encoded("PNG", "P"),
    }
    for name, data in (bad | good).items():
        (folder / name).write_bytes(data)
    (folder / "val/dog/loop.png").symlink_to("loop.png")
    os.mkfifo(folder / "val/dog/fifo.png")
    (folder / "val/dog/link.png").symlink_to("nowhere")
    out = imported("imagefolder", folder)
    train, val = (ArrowDataset(str(out / split)) for split in ("train", "val"))
    assert (len(train), len(val)) == (11, 2)
    assert all(train.image(i).shape[0] == 3 for i in range(11))
    stored = {bytes(train.data(i)) for i in range(11)}
    assert stored >= set(good.values())
    lines = (out / "rejected.txt").read_text(encoding="utf-8").splitlines()
    assert [line.split("\t")[0] for line in lines] == [
        *list(bad)[:5],
        "val/dog/fifo.png",
        "val/dog/link.png",
        "val/dog/loop.png",
        "val/dog/üñï 猫\\n.png",
    ]
    assert all(line.count("\t") == 1 and line.split("\t")[1] for line in lines)


def test_folders_in_a_class_are_read_as_torchvision_reads_them(folder: Path) -> None:
    for name in ("a/2", "a/1", "a/b.png/deep", "a-b/3", "A/0", "z"):
        path = folder / f"train/cat/{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded("PNG", seed=len(name)))
    (folder / "train/cat/a/notes.txt").write_text("text")
    (folder / "elsewhere").mkdir()
    (folder / "elsewhere/linked.jpg").write_bytes(encoded(seed=9))
    (folder / "train/dog/more").symlink_to(folder / "elsewhere")
    theirs = [path for path, _ in TorchvisionFolder(str(folder / "train")).samples]
    ours = [str(item.data) for item in ImageFolder(folder).items("train")]
    assert [path for path in ours if not path.endswith(".txt")] == theirs
    out = imported("imagefolder", folder)
    train = ArrowDataset(str(out / "train"))
    assert [bytes(train.data(i)) for i in range(len(train))] == [Path(path).read_bytes() for path in theirs]
    rejected = (out / "rejected.txt").read_text()
    assert rejected == "train/cat/a/notes.txt\tits name does not end in .jpg, .jpeg, .png\n"


def test_a_link_back_to_a_folder_above_is_refused(folder: Path) -> None:
    (folder / "train/cat/inner").mkdir()
    (folder / "train/cat/inner/again").symlink_to(folder / "train/cat")
    refused("imagefolder", folder, "cat/inner/again: a link back to ")


def test_hidden_files_are_no_images(folder: Path) -> None:
    before = content(imported("imagefolder", folder))
    for name in ("._0.png", ".DS_Store", ".ipynb_checkpoints/0.png", "._inner/1.png"):
        path = folder / "train/cat" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(encoded("PNG"))
    result = run("imagefolder", folder, folder.parent / "again", "--workers", "0")
    assert result.exit_code == 0, result.output
    assert content(folder.parent / "again") == before


@given(
    st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=8).filter(
        lambda text: unicodedata.normalize("NFC", text) != unicodedata.normalize("NFD", text)
    )
)
def test_class_names_in_two_spellings(text: str) -> None:
    one, other = (unicodedata.normalize(form, text) for form in ("NFC", "NFD"))
    check_spelling(["tea", one, one], "here")
    with pytest.raises(DataError) as caught:
        check_spelling(["tea", one, other], "here")
    for name in (one, other):
        assert ascii(name) in str(caught.value)


def test_class_folders_in_two_spellings(folder: Path) -> None:
    for split, form in (("train", "NFC"), ("val", "NFD")):
        (folder / split / "cat").rename(folder / split / unicodedata.normalize(form, "café"))
    refused("imagefolder", folder, r"the classes 'cafe\u0301' and 'caf\xe9' are both 'café'")
    shutil.copytree(folder / "val" / "cafe\u0301", folder / "val" / "café")
    shutil.copytree(folder / "train" / "café", folder / "train" / "cafe\u0301")
    refused("imagefolder", folder, r"the classes 'cafe\u0301' and 'caf\xe9' are both 'café'")


def test_corrupt_images_do_not_crash_the_command(folder: Path) -> None:
    (folder / "val/cat/more.png").write_bytes(b"x")
    result = run("imagefolder", folder, folder.parent / "out", "--workers", "1")
    assert result.exit_code == 0
    assert (
        f"images imported: 9, rejected: 1; they are listed in {folder.parent}/out/rejected.txt"
        in result.output
    )


def test_a_class_without_any_readable_image(folder: Path) -> None:
    (folder / "val/dog/0.png").write_bytes(b"x")
    refused("imagefolder", folder, "val: no readable image in 1 of 2 classes: dog; see ")
    for file in (folder / "train").glob("*/*"):
        file.write_bytes(b"x")
    (folder.parent / "refused.part").rename(folder.parent / "old")
    refused("imagefolder", folder, "none of 7 images that were tried can be decoded")


def test_folders_that_are_no_data_set(tmp_path: Path, folder: Path) -> None:
    refused("imagefolder", tmp_path / "missing", "missing/train: cannot be read as a folder")
    (folder / "train" / "empty").mkdir()
    (folder / "train" / ".hidden").mkdir()
    refused("imagefolder", folder, "different classes: only in train: empty")
    (folder / "val" / "empty").mkdir()
    refused("imagefolder", folder, "train: folders without images: empty")
    (folder / "val" / "empty").rename(folder / "val" / "more")
    refused("imagefolder", folder, "only in train: empty; only in val: more")
    for split in ("train", "val"):
        Path(os.fsdecode(os.fsencode(folder / split) + b"/\xff")).mkdir()
    (folder / "val" / "more").rename(folder / "val" / "empty")
    refused("imagefolder", folder, "not named in UTF-8")
    bare = tmp_path / "bare"
    for split in ("train", "val"):
        (bare / split).mkdir(parents=True)
    refused("imagefolder", bare, "it holds no folder")
    (tmp_path / "file").write_text("")
    result = run("imagefolder", bare, tmp_path / "file" / "out")
    assert result.exit_code == 2


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """Images of 400 KB: three shards of 1 MB for training, one of which has a damaged image."""
    for split, count in (("train", 4), ("val", 1)):
        for name in ("x", "y"):
            (tmp_path / "source" / split / name).mkdir(parents=True)
            for i in range(count):
                data = encoded("PNG", size=(370, 370), seed=count + i + ord(name))
                (tmp_path / "source" / split / name / f"{i}.png").write_bytes(data)
    with (tmp_path / "source" / "train" / "x" / "1.png").open("r+b") as file:
        file.truncate(300_000)
    return tmp_path / "source"


def test_an_interrupted_import_goes_on(large: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = tmp_path / "whole"
    assert run("imagefolder", large, whole, "--shard-mb", "1", "--workers", "2").exit_code == 0
    assert len(list((whole / "train").iterdir())) == 3
    write, written = engine.write_dataset, []

    def count(path: Path, *rest: Any) -> str:
        written.append(path.name)
        if len(written) in stops:
            (path.parent / "shard-00001.arrow.part").write_bytes(b"half a shard")
            raise KeyboardInterrupt
        return write(path, *rest)

    monkeypatch.setattr(engine, "write_dataset", count)
    stops: tuple[int, ...] = (2, 3)
    arguments = ("imagefolder", large, tmp_path / "out", "--shard-mb", "1", "--workers", "0")
    for _ in stops:
        assert run(*arguments).exit_code == 130
        assert not (tmp_path / "out").exists()
    journal = tmp_path / "out.part" / "import.jsonl"
    with journal.open("a") as file:
        file.write('{"name": "train/sh')  # a line that was cut off
    assert run(*arguments).exit_code == 0
    assert written == [f"shard-{i:05d}.arrow" for i in (0, 1, 1, 1, 2, 0)], "finished shards are kept"
    assert content(tmp_path / "out") == content(whole)


def test_a_killed_import_goes_on_and_a_damaged_shard_is_redone(large: Path, tmp_path: Path) -> None:
    arguments = ("imagefolder", large, tmp_path / "out", "--shard-mb", "1", "--workers", "0")
    script = (
        "import os, sys\n"
        "from kdcl_dist.data.importers.journal import Journal\n"
        "add = Journal.add_shard\n"
        "def dies(journal, shard):\n"
        "    add(journal, shard)\n"
        "    if shard.name.endswith('1.arrow'): os.kill(os.getpid(), 9)\n"
        "Journal.add_shard = dies\n"
        "from kdcl_dist.cli import main\n"
        "main()\n"
    )
    command = [sys.executable, "-c", script, "data", "import", *map(str, arguments)]
    assert subprocess.run(command, cwd=ROOT, capture_output=True).returncode == -9
    first = tmp_path / "out.part" / "train" / "shard-00000.arrow"
    data = bytearray(first.read_bytes())
    data[len(data) // 2] ^= 1
    first.write_bytes(data)
    assert run(*arguments).exit_code == 0
    assert run("imagefolder", large, tmp_path / "whole", *arguments[3:]).exit_code == 0
    assert content(tmp_path / "out") == content(tmp_path / "whole")


def test_a_changed_source_is_noticed(large: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ("imagefolder", large, tmp_path / "out", "--workers", "0", "--shard-mb")

    def interrupted(*_: Any) -> str:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(engine, "write_dataset", interrupted)
        assert run(*arguments, "1").exit_code == 130
    assert "other options; delete it" in run(*arguments, "2").output
    (large / "train" / "x" / "0.png").write_bytes(encoded("PNG", size=(370, 370), seed=99))
    result = run(*arguments, "1")
    assert result.exit_code == 2
    assert "of one that changed since" in result.output
    assert run("imagefolder", large, large).output.startswith("kdcl: error: ")
    (tmp_path / "other.part").mkdir()
    assert run("imagefolder", large, tmp_path / "other", "--workers", "0").exit_code == 2


def test_a_source_that_changes_meanwhile(folder: Path) -> None:
    source = ImageFolder(folder)

    def on_progress(what: str, done: int, total: int) -> None:
        if what == "train":
            (folder / "val" / "cat" / "0.png").unlink(missing_ok=True)

    with pytest.raises(DataError, match="changed during the import: 2 images became 1"):
        import_images(source, folder.parent / "out", workers=0, on_progress=on_progress)


def test_any_number_of_workers_gives_the_same_files(large: Path, tmp_path: Path) -> None:
    for workers in ("0", "3"):
        assert run("imagefolder", large, tmp_path / workers, "--workers", workers).exit_code == 0
    assert content(tmp_path / "0") == content(tmp_path / "3")


def test_items_are_read_a_bounded_number_ahead() -> None:
    taken = 0

    def items() -> Iterator[Item]:
        nonlocal taken
        for row in range(10_000):
            taken += 1
            yield Item(0, str(row), b"", 0)

    with Workers(1) as workers:
        results = workers.map(_name, items())
        assert [next(results)[1] for _ in range(5)] == ["0", "1", "2", "3", "4"]
        assert taken <= 64
        results.close()


def test_a_worker_that_dies_is_one_line() -> None:
    with Workers(1) as workers, pytest.raises(DataError, match="a process that checks images died"):
        list(workers.map(_die, [Item(0, "x", b"", 0)]))


def _name(item: Item) -> str:
    return item.name


def _die(item: Item) -> str:
    os._exit(9)

"""Importing folders and tables of encoded images."""

from __future__ import annotations

import io
import json
import multiprocessing as mp
import os
import struct
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result
from cohorts import ROOT
from PIL import Image

from kdcl_dist.cli import kdcl
from kdcl_dist.data.dataset import ArrowDataset
from kdcl_dist.data.decode import decode
from kdcl_dist.data.importers import images as engine
from kdcl_dist.data.importers.check import Item, Workers
from kdcl_dist.data.importers.imagefolder import ImageFolder
from kdcl_dist.data.importers.images import import_images
from kdcl_dist.errors import DataError


def encoded(kind: str = "JPEG", mode: str = "RGB", size: tuple[int, int] = (20, 16), seed: int = 0) -> bytes:
    """A random image in a file's bytes."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, kind)
    return buffer.getvalue()


def png16(value: int, channels: int = 1) -> bytes:
    """A 16-bit PNG of one value, 4 x 4, written chunk by chunk."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", 4, 4, 16, {1: 0, 3: 2}[channels], 0, 0, 0)
    rows = zlib.compress((b"\0" + struct.pack(">H", value) * 4 * channels) * 4)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes, seven training and two validation images."""
    for name in ("train/cat", "train/dog", "val/cat", "val/dog"):
        for i in range(1 if name.startswith("val") else 3 + name.endswith("dog")):
            path = tmp_path / "source" / name / f"{i}.{'JPEG' if i % 2 else 'png'}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encoded("JPEG" if i % 2 else "PNG", seed=len(name) + i))
    return tmp_path / "source"


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(kdcl, ["data", "import", *map(str, arguments)])


def imported(kind: str, source: Path, *more: str) -> Path:
    target = source.parent / "out"
    result = run(kind, source, target, "--workers", "0", *more)
    assert result.exit_code == 0, result.output
    assert not list(target.rglob("*.jsonl"))
    assert not list(target.parent.glob("*.part"))
    return target


def refused(kind: str, source: Path, words: str, *more: str) -> None:
    result = run(kind, source, source.parent / "refused", "--workers", "0", *more)
    assert result.exit_code == 2, result.output
    errors = [line for line in result.output.splitlines() if line.startswith("kdcl: error: ")]
    assert len(errors) == 1
    assert words in errors[0]
    assert "Traceback" not in result.output


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# -- pixels --------------------------------------------------------------------------------------


MODES = {"JPEG": ("1", "L", "RGB", "CMYK"), "PNG": ("1", "L", "LA", "P", "RGB", "RGBA")}


@pytest.mark.parametrize(("kind", "mode"), [(kind, mode) for kind, modes in MODES.items() for mode in modes])
def test_all_colours_become_rgb(kind: str, mode: str) -> None:
    assert decode(encoded(kind, mode), 3).shape == (16, 20, 3)
    assert decode(encoded(kind, mode), 1).shape == (16, 20, 1)


def test_palettes_with_transparency() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((1, 0), 1)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", transparency=b"\x00\x80")
    assert decode(buffer.getvalue(), 3).tolist() == [[[10, 20, 30], [40, 50, 60]]]


@pytest.mark.parametrize(("value", "wanted"), [(0, 0), (257, 1), (25700, 100), (32768, 128), (65535, 255)])
def test_16_bit_images_are_scaled(value: int, wanted: int) -> None:
    assert decode(png16(value), 3).tolist() == [[[wanted] * 3] * 4] * 4
    assert decode(png16(value), 1).tolist() == [[[wanted]] * 4] * 4
    assert abs(int(decode(png16(value, channels=3), 3)[0, 0, 0]) - wanted) <= 1


def test_only_jpeg_and_png_are_decoded() -> None:
    whole = encoded("PNG")
    for data in (b"", b"text", encoded("GIF", "P"), encoded("BMP"), whole[: len(whole) // 2], whole[:40]):
        with pytest.raises(ValueError, match=r".") as caught:
            decode(data, 3)
        assert "\n" not in str(caught.value)
        assert "0x" not in str(caught.value)


def test_an_image_too_large_for_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ValueError, match="DecompressionBomb"):
        decode(encoded("PNG"), 3)


# -- folders -------------------------------------------------------------------------------------


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
    (folder / "val/dog/folder.png").mkdir()
    (folder / "val/dog/link.png").symlink_to("nowhere")
    out = imported("imagefolder", folder)
    train, val = (ArrowDataset(str(out / split)) for split in ("train", "val"))
    assert (len(train), len(val)) == (11, 2)
    assert all(train.image(i).shape[0] == 3 for i in range(11))
    stored = {bytes(train.data(i)) for i in range(11)}
    assert stored >= set(good.values())
    lines = (out / "rejected.txt").read_text(encoding="utf-8").splitlines()
    assert [line.split("\t")[0] for line in lines] == [
        *list(bad)[:4],
        "val/dog/folder.png",
        "val/dog/link.png",
        "val/dog/üñï 猫\\n.png",
    ]
    assert all(line.count("\t") == 1 and line.split("\t")[1] for line in lines)


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


# -- tables --------------------------------------------------------------------------------------

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
        (columns([0]).drop(["image"]), "no column 'image'; it has 'label', 'other'"),
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
    whole = (source / "train.parquet").read_bytes()
    for suffix in ("parquet", "arrow"):
        for data in (b"", b"text" * 100, whole[: len(whole) // 2]):
            (tmp_path / f"t.{suffix}").write_bytes(data)
            refused("table", tmp_path / f"t.{suffix}", "not Parquet or Arrow IPC, or damaged")
    damaged = bytearray(whole)
    damaged[20:200] = bytes(180)
    (tmp_path / "t.parquet").write_bytes(damaged)
    refused("table", tmp_path / "t.parquet", "t.parquet: not Parquet or Arrow IPC, or damaged")


def test_memory_is_bounded(tmp_path: Path) -> None:
    """A table of 300 MB takes less than 150 MB more than one of 60 MB; mapped files are not counted."""
    noise = np.random.default_rng(0).integers(0, 256, 1_000_000, np.uint8).tobytes()
    image = encoded("PNG") + noise  # what follows the end of a PNG is not looked at

    def peak(rows: int) -> int:
        schema = pa.schema([("image", pa.binary()), ("label", pa.int64())])
        path = tmp_path / f"{rows}.parquet"
        with pq.ParquetWriter(path, schema, compression="none", use_dictionary=False) as writer:
            for start in range(0, rows, 10):
                count = min(10, rows - start)
                writer.write_table(pa.table({"image": [image] * count, "label": [0] * count}, schema))
        script = (
            "import sys\n"
            "from pathlib import Path\n"
            "from kdcl_dist.data.importers.images import import_images\n"
            "from kdcl_dist.data.importers.table import Table\n"
            "source = Table(Path(sys.argv[1]), image='image', label='label')\n"
            "seen = []\n"
            "def own(*_):\n"
            "    lines = Path('/proc/self/status').read_text().splitlines()\n"
            "    seen.append(next(int(line.split()[1]) for line in lines if line.startswith('RssAnon')))\n"
            "import_images(source, Path(sys.argv[2]), workers=0, on_progress=own, shard_mb=1000)\n"
            "print(max(seen))\n"
        )
        command = [sys.executable, "-c", script, str(path), str(tmp_path / f"out{rows}")]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, check=True, text=True)
        return int(done.stdout) * 1024

    assert peak(300) - peak(60) < 150e6

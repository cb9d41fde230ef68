"""Importing MNIST's format: files made here byte by byte, and every way they may be wrong."""

from __future__ import annotations

import gzip
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from changed_bytes import changed
from importing import content, make_special, run, write_idx
from torchvision import datasets

from kdcl_dist.data.dataset import ArrowDataset
from kdcl_dist.data.importers.idx import SETS, import_idx
from kdcl_dist.data.importers.idx_file import BATCH_ROWS, IdxFile
from kdcl_dist.errors import DataError

RNG = np.random.default_rng(0)
IMAGES = {
    "train": RNG.integers(0, 256, (30, 6, 5), np.uint8),
    "test": RNG.integers(0, 256, (7, 6, 5), np.uint8),
}
LABELS = {"train": np.arange(30) % 10, "test": np.arange(7) + 3}
PREFIXES = {"train": "train-", "test": "t10k-"}


def write_set(
    folder: Path, name: str = "{prefix}{what}-idx{dimensions}-ubyte", **changes: np.ndarray
) -> Path:
    """The four files of a set; `changes` replaces some by split and content: `train_labels`."""
    for split, prefix in PREFIXES.items():
        for what, values in (("images", IMAGES[split]), ("labels", LABELS[split])):
            values = changes.get(f"{split}_{what}", values)
            write_idx(folder / name.format(prefix=prefix, what=what, dimensions=values.ndim), values)
    return folder


def refused(source: Path, words: str, *more: str) -> None:
    """The command says in one line what is wrong, with exit code 2, and leaves nothing behind."""
    result = run("idx", source, source.parent / "refused", *more)
    assert result.exit_code == 2, result.output
    assert words in result.output
    assert result.output.startswith("kdcl: error: ")
    assert result.output.count("\n") == 1
    assert not list(source.parent.glob("refused*"))


@pytest.mark.parametrize("end", ["", ".gz"])
@pytest.mark.parametrize("mark", ["-", "."])
def test_a_set(tmp_path: Path, end: str, mark: str) -> None:
    source = write_set(tmp_path / "source", f"{{prefix}}{{what}}{mark}idx{{dimensions}}-ubyte{end}")
    result = run("idx", source, tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert result.output.split() == [str(tmp_path / "out" / f"{split}.arrow") for split in ("train", "test")]
    for split in ("train", "test"):
        found = ArrowDataset(str(tmp_path / "out" / f"{split}.arrow"))
        assert found.labels.tolist() == LABELS[split].tolist()
        assert np.array_equal([found.image(i).numpy() for i in range(len(found))], IMAGES[split][:, None])
        assert found.classes == tuple("0123456789")
        assert found.mean == pytest.approx([(IMAGES["train"] / 255).mean()], rel=1e-12)
        assert found.std == pytest.approx([(IMAGES["train"] / 255).std()], rel=1e-9)
    import_idx(source, tmp_path / "again")
    assert content(tmp_path / "out") == content(tmp_path / "again")


def test_a_packed_file_without_the_ending_and_the_reverse(tmp_path: Path) -> None:
    """Browsers unpack what they download, and keep the name."""
    import_idx(write_set(tmp_path / "plain"), tmp_path / "out")
    source = write_set(tmp_path / "other")
    for file in list(source.iterdir()):
        if "train" in file.name:
            file.rename(f"{file}.gz")
        else:
            file.write_bytes(gzip.compress(file.read_bytes()))
    import_idx(source, tmp_path / "again")
    own, other = (content(tmp_path / name)["train.arrow"] for name in ("out", "again"))
    assert own.replace(b"'plain'", b"'other'") == other


def test_torchvision_reads_the_same(tmp_path: Path) -> None:
    write_set(tmp_path / "FashionMNIST" / "raw")
    import_idx(tmp_path / "FashionMNIST" / "raw", tmp_path / "out", "fashion-mnist")
    for split in ("train", "test"):
        theirs = datasets.FashionMNIST(tmp_path, train=split == "train")
        ours = ArrowDataset(str(tmp_path / "out" / f"{split}.arrow"))
        assert np.array_equal(theirs.data.numpy(), [ours.pixels(i)[0] for i in range(len(ours))])
        assert theirs.targets.tolist() == ours.labels.tolist()
        assert list(ours.classes) == theirs.classes
        assert ours.info.license == "MIT"


def test_the_class_names_are_those_that_torchvision_lists() -> None:
    for name, theirs in (("fashion-mnist", datasets.FashionMNIST), ("kmnist", datasets.KMNIST)):
        assert list(SETS[name].classes) == theirs.classes
    assert [f"{name} - " for name in SETS["mnist"].classes] == [name[:4] for name in datasets.MNIST.classes]
    for name in datasets.EMNIST.splits:
        first = SETS[f"emnist-{name}"].first_label
        assert list(SETS[f"emnist-{name}"].classes) == datasets.EMNIST.classes_split_dict[name][first:]
    assert SETS["emnist-letters"].first_label == 1


def test_emnist_is_turned_and_its_letters_begin_at_1(tmp_path: Path) -> None:
    source = tmp_path / "source"
    for name in ("letters", "digits"):
        for split in ("train", "test"):
            start = source / f"emnist-{name}-{split}"
            write_idx(Path(f"{start}-images-idx3-ubyte.gz"), IMAGES[split])
            write_idx(Path(f"{start}-labels-idx1-ubyte.gz"), LABELS[split] + (name == "letters") * 17)
    refused(source, "it holds emnist-digits, emnist-letters; choose one with --classes")
    assert run("idx", source, tmp_path / "letters", "--classes", "emnist-letters").exit_code == 0
    for file in source.glob("*letters*"):
        file.unlink()
    assert run("idx", source, tmp_path / "digits").exit_code == 0
    for name, first in (("letters", 16), ("digits", 0)):
        train = ArrowDataset(str(tmp_path / name / "train.arrow"))
        assert train.info.shape == (1, 5, 6)
        assert all(np.array_equal(train.pixels(i)[0], IMAGES["train"][i].T) for i in range(30))
        assert train.labels.tolist() == (LABELS["train"] + first).tolist()
    assert ArrowDataset(str(tmp_path / "letters" / "train.arrow")).classes == tuple(
        "abcdefghijklmnopqrstuvwxyz"
    )


def test_own_class_names(tmp_path: Path) -> None:
    names = tmp_path / "names.txt"
    names.write_text("\ufeff" + "".join(f"kind {i}\r\n" for i in range(10)), encoding="utf-8")
    source = write_set(tmp_path / "source")
    assert run("idx", source, tmp_path / "out", "--classes", str(names)).exit_code == 0
    assert ArrowDataset(str(tmp_path / "out" / "test.arrow")).classes == tuple(f"kind {i}" for i in range(10))
    for text, words in (
        ("a\nb\n", "the label in row 2 of the labels of train-images-idx3-ubyte is 2, not one of 0 to 1"),
        ("a\n\nb\n", "line 2 is empty"),
        ("", "line 1 is empty"),
        ("a\nb\na\n", "lines 1 and 3 both name the class 'a'"),
        ("caf\u00e9\ncafe\u0301\n", "in two spellings of Unicode"),
    ):
        names.write_text(text, encoding="utf-8")
        refused(source, words, "--classes", str(names))
    names.write_bytes(b"\xff")
    refused(source, "cannot be read as class names", "--classes", str(names))
    refused(source, "missing: cannot be read as class names", "--classes", str(tmp_path / "missing"))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"train_labels": LABELS["train"][1:]}, "29 labels, but train-images-idx3-ubyte has 30 images"),
        ({"test_labels": LABELS["test"] + 1}, "t10k-images-idx3-ubyte is 10, not one of 0 to 9"),
        (
            {"test_images": IMAGES["test"][:, 1:]},
            "images of (5, 5) pixels, but those of train-images-idx3-ubyte",
        ),
        ({"train_images": IMAGES["train"][:0]}, "its header says 0 x 6 x 5"),
        ({"train_images": IMAGES["train"][:, :, :0]}, "its header says 30 x 6 x 0"),
        ({"train_images": IMAGES["train"][:, 0]}, "no train-images-idx3-ubyte in it, nor the same as .gz"),
    ],
    ids=lambda value: str(value)[:30] if isinstance(value, str) else "",
)
def test_files_that_do_not_fit(changes: dict[str, np.ndarray], words: str, tmp_path: Path) -> None:
    refused(write_set(tmp_path / "source", **changes), words)


def image_file(count: int, height: int, width: int, data: bytes, magic: bytes = b"\0\0\x08\x03") -> bytes:
    return magic + struct.pack(">3I", count, height, width) + data


HOSTILE: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty": (lambda: b"", "it must begin with the bytes 00 00 08 03"),
    "text": (lambda: b"<html>not found</html>", "(found 3c 68 74 6d)"),
    "floats": (lambda: image_file(1, 1, 1, bytes(4), b"\0\0\x0d\x03"), "(found 00 00 0d 03)"),
    "labels": (lambda: image_file(1, 1, 1, b"\0", b"\0\0\x08\x01"), "(found 00 00 08 01)"),
    "short": (lambda: image_file(30, 6, 5, bytes(899)), "30 x 6 x 5: 916 bytes; it may have 915"),
    "long": (lambda: image_file(30, 6, 5, bytes(901)), "30 x 6 x 5: 916 bytes; it may have 917"),
    "lie": (lambda: image_file(2**32 - 1, 28, 28, bytes(900)), "4294967295 x 28 x 28"),
    "huge": (lambda: image_file(1, 2**32 - 1, 2**32 - 1, b""), "1 x 4294967295 x 4294967295"),
    "packed short": (lambda: gzip.compress(image_file(30, 6, 5, bytes(899))), "it ends within row 29 of 30"),
    "packed long": (lambda: gzip.compress(image_file(30, 6, 5, bytes(901))), "it goes on behind the 30 rows"),
    "packed lie": (
        lambda: gzip.compress(image_file(2**32 - 1, 28, 28, bytes(900))),
        "it may have 50,000,000",
    ),
    "packed cut": (lambda: gzip.compress(image_file(30, 6, 5, bytes(900)))[:-9], "EOFError"),
    "no checksum": (
        lambda: gzip.compress(image_file(30, 6, 5, bytes(900)))[:-8] + bytes(8),
        "CRC check failed",
    ),
    "packed head": (lambda: b"\x1f\x8b", "EOFError"),
    "packed twice": (lambda: gzip.compress(gzip.compress(b"x")), "(found 1f 8b 08 00)"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files(name: str, tmp_path: Path) -> None:
    source = write_set(tmp_path / "source")
    make, words = HOSTILE[name]
    (source / "train-images-idx3-ubyte").write_bytes(make())
    refused(source, f"{source / 'train-images-idx3-ubyte'}: not a whole IDX file: ")
    refused(source, words)


def test_a_bomb_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A gigabyte behind the 30 images of the header: only the first byte of it is asked for."""
    source = write_set(tmp_path / "source")
    with gzip.open(source / "train-images-idx3-ubyte", "wb", compresslevel=1) as file:
        file.write(image_file(30, 6, 5, bytes(900)))
        for _ in range(100):
            file.write(bytes(1_000_000))
    asked: list[int] = []
    read = gzip.GzipFile.read
    monkeypatch.setattr(gzip.GzipFile, "read", lambda self, size=-1: asked.append(size) or read(self, size))
    refused(source, "it goes on behind the 30 rows")
    assert 0 < sum(asked) < 100_000


@pytest.mark.parametrize("kind", ["fifo", "device", "socket", "folder"])
def test_what_is_no_regular_file(kind: str, tmp_path: Path) -> None:
    source = write_set(tmp_path / "source")
    for name in ("t10k-labels-idx1-ubyte", "train-images-idx3-ubyte"):
        (source / name).unlink()
        make_special(source / name, kind)
        refused(source, f"{name}: not a whole IDX file: ")


def test_sources_that_are_no_set(tmp_path: Path) -> None:
    refused(tmp_path / "missing", "missing: no such folder")
    source = write_set(tmp_path / "source")
    refused(source / "train-images-idx3-ubyte", "no such folder; it must hold train-images-idx3-ubyte")
    refused(source, "no emnist-letters-train-images-idx3-ubyte in it", "--classes", "emnist-letters")
    (source / "t10k-labels-idx1-ubyte").unlink()
    refused(
        source, "no t10k-labels-idx1-ubyte in it, nor the same as .gz; --classes knows the names of mnist"
    )


def test_a_batch_is_in_memory_at_a_time(tmp_path: Path) -> None:
    images = np.arange(2 * BATCH_ROWS + 5).reshape(-1, 1, 1)
    for name in ("plain", "packed.gz"):
        found = list(IdxFile(write_idx(tmp_path / name, images), 3).batches())
        assert [len(batch) for batch in found] == [BATCH_ROWS, BATCH_ROWS, 5]
        assert np.array_equal(np.concatenate(found).ravel(), images.ravel().astype(np.uint8))
    side = 5000  # 25 MB an image
    wide = IdxFile(write_idx(tmp_path / "wide", np.zeros((2, side, side), np.uint8)), 3)
    assert [batch.shape for batch in wide.batches()] == [(1, side * side)] * 2


def test_a_file_that_changes_meanwhile(tmp_path: Path) -> None:
    file = IdxFile(write_idx(tmp_path / "x", np.zeros((3, 2, 2))), 3)
    write_idx(tmp_path / "x", np.zeros((2, 3, 2)))
    with pytest.raises(DataError, match="changed during the import"):
        list(file.batches())


def test_constant_pixels(tmp_path: Path) -> None:
    images: Any = {"train_images": np.full((30, 6, 5), 7)}
    import_idx(write_set(tmp_path / "source", **images), tmp_path / "out")
    assert ArrowDataset(str(tmp_path / "out" / "train.arrow")).std == (1.0,)


@pytest.mark.parametrize("end", ["", ".gz"])
def test_changed_bytes_are_imported_or_refused_in_one_line(end: str, tmp_path: Path) -> None:
    source = write_set(tmp_path / "source", "{prefix}{what}-idx{dimensions}-ubyte" + end)
    draw, refusals = random.Random(0), []
    files = sorted(source.iterdir())
    for number in range(150):
        file = draw.choice(files)
        whole = file.read_bytes()
        file.write_bytes(changed(whole, draw))
        try:
            import_idx(source, tmp_path / f"out{number}")
        except DataError as error:
            refusals.append(str(error))
        file.write_bytes(whole)
    assert 20 < len(refusals) < 150
    assert not any("\n" in line for line in refusals)

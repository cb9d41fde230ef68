"""Importing CIFAR: files of exactly the official format, made here, and every way they may be wrong."""

from __future__ import annotations

import gzip
import io
import pickle
import pickletools
import struct
import tarfile
from collections.abc import Callable
from dataclasses import replace
from hashlib import md5
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st
from importing import make_special

from benchmarks.cifar_files import python2_pickle, write_cifar10, write_cifar100
from kdcl_dist.cli import kdcl
from kdcl_dist.data.dataset import ArrowDataset, Info
from kdcl_dist.data.importers import cifar
from kdcl_dist.data.importers.cifar import LAYOUTS, import_cifar
from kdcl_dist.data.importers.inert_pickle import read_pickle
from kdcl_dist.data.writer import content_digest, write_batches, write_dataset
from kdcl_dist.errors import DataError


@pytest.fixture
def ten(tmp_path: Path) -> Path:
    """cifar-10-batches-py with six files of 12 images."""
    return write_cifar10(tmp_path / "source", 12)


def pack(folder: Path) -> Path:
    path = folder.parent / "archive.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for file in sorted(folder.iterdir(), reverse=True):  # the official order is none either
            archive.add(file, f"{folder.name}/{file.name}")
    return path


def official(monkeypatch: pytest.MonkeyPatch, kind: str, folder: Path, archive: Path | None = None) -> None:
    """Take these files for the official ones."""
    sums = {name: md5((folder / name).read_bytes()).hexdigest() for name in LAYOUTS[kind].md5}
    whole = md5(archive.read_bytes()).hexdigest() if archive else ""
    monkeypatch.setitem(cifar.LAYOUTS, kind, replace(LAYOUTS[kind], md5=sums, archive_md5=whole))


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(kdcl, ["data", "import", *map(str, arguments)])


def refused(kind: str, source: Path, words: str, *more: str) -> None:
    """The command says in one line what is wrong, with exit code 2, and leaves nothing behind."""
    target = source.parent / "refused"
    result = run(kind, source, target, *more)
    assert result.exit_code == 2, result.output
    assert words in result.output
    assert result.output.startswith("kdcl: error: ")
    assert result.output.count("\n") == 1
    assert not list(source.parent.glob("refused*"))


def test_the_pickles_are_as_python_2_wrote_them() -> None:
    """The program of the official files, opcode by opcode, as `pickletools.dis` shows it for them."""
    found = [
        (code.name, value)
        for code, value, _ in pickletools.genops(python2_pickle({b"data": np.zeros((1, 300), np.uint8)}))
    ]
    assert found[:5] == [
        ("PROTO", 2),
        ("EMPTY_DICT", None),
        ("MARK", None),
        ("SHORT_BINSTRING", "data"),
        ("GLOBAL", "numpy.core.multiarray _reconstruct"),
    ]
    assert {value for name, value in found if name == "GLOBAL"} == {
        "numpy.core.multiarray _reconstruct",
        "numpy ndarray",
        "numpy dtype",
    }
    assert ("BINSTRING", "\0" * 300) in found


@pytest.mark.filterwarnings("ignore:numpy.core is deprecated:DeprecationWarning")
def test_numpy_reads_the_same_from_them(ten: Path) -> None:
    data = (ten / "data_batch_1").read_bytes()
    theirs, ours = pickle.loads(data, encoding="bytes"), read_pickle(data, "x")
    assert np.array_equal(theirs.pop(b"data"), ours.pop(b"data"))
    assert theirs == ours
    assert theirs.keys() == {b"batch_label", b"labels", b"filenames"}


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_pickles_that_python_3_wrote(protocol: int) -> None:
    images = np.arange(12, dtype=np.uint8).reshape(3, 4)
    data = pickle.dumps({b"data": images, b"labels": [1, 2]}, protocol)
    found = read_pickle(data, "x")
    assert np.array_equal(found[b"data"], images)
    assert found[b"labels"] == [1, 2]


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("key", [str, str.encode])
@pytest.mark.parametrize(
    "labels",
    [
        lambda rng: rng.integers(0, 10, 2000),
        lambda rng: rng.integers(0, 10, 2000, dtype=np.uint8),
        lambda rng: rng.integers(0, 10, 2000).astype(">i4"),
        lambda rng: list(rng.integers(0, 10, 2000)),
        lambda rng: rng.integers(0, 10, 2000).tolist(),
    ],
    ids=["int64", "uint8", "big-endian", "scalars", "plain"],
)
def test_files_of_real_size_that_todays_python_wrote(
    tmp_path: Path, protocol: int, key: Callable[[str], Any], labels: Callable[..., Any]
) -> None:
    """The images are more than a frame holds, and more than the reader fetches ahead."""
    rng = np.random.default_rng(0)
    images, chosen = rng.integers(0, 256, (2000, 3072), np.uint8), labels(rng)
    data = pickle.dumps({key("data"): images, key("labels"): chosen}, protocol)
    found = cifar._labelled(data, LAYOUTS["cifar10"], "x")
    assert np.array_equal(found.images_ND, images)
    assert found.labels_N == [int(label) for label in chosen]
    assert all(type(label) is int for label in found.labels_N)


def test_an_import_of_text_keys_and_numpy_labels(tmp_path: Path, ten: Path) -> None:
    import_cifar("cifar10", ten, tmp_path / "out", checksums=False)
    for file in ten.iterdir():
        content = {key.decode(): value for key, value in read_pickle(file.read_bytes(), "x").items()}
        if "labels" in content:
            content["labels"] = np.array(content["labels"])
        else:
            content["label_names"] = [name.decode() for name in content["label_names"]]
        file.write_bytes(pickle.dumps(content))
    import_cifar("cifar10", ten, tmp_path / "again", checksums=False)
    for name in ("train.arrow", "test.arrow"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


@given(st.integers(0, 20_000))
def test_a_pickle_cut_anywhere_is_refused(length: int) -> None:
    data = pickle.dumps({b"data": np.zeros((200, 100), np.uint8), b"labels": [1]}, 4)
    with pytest.raises(DataError, match="cannot be read as a CIFAR pickle"):
        read_pickle(data[:length], "x")


@pytest.mark.parametrize("packed", [False, True])
def test_cifar10(tmp_path: Path, ten: Path, packed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    source = pack(ten) if packed else ten
    official(monkeypatch, "cifar10", ten, source if packed else None)
    result = run("cifar10", source, tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert result.output.split() == [str(tmp_path / "out" / f"{split}.arrow") for split in ("train", "test")]
    train, test = (ArrowDataset(str(tmp_path / "out" / f"{split}.arrow")) for split in ("train", "test"))
    files = [read_pickle((ten / f"data_batch_{i}").read_bytes(), "x") for i in range(1, 6)]
    images_NCHW = np.concatenate([file[b"data"] for file in files]).reshape(-1, 3, 32, 32)
    assert train.labels.tolist() == [label for file in files for label in file[b"labels"]]
    assert all(np.array_equal(train.image(i).numpy(), image) for i, image in enumerate(images_NCHW))
    assert len(train) == 60
    assert len(test) == 12
    assert train.classes == test.classes
    assert train.classes[0] == "airplane"
    pixels = images_NCHW / 255
    assert train.mean == test.mean == pytest.approx(pixels.mean((0, 2, 3)), rel=1e-12)
    assert train.std == test.std == pytest.approx(pixels.std((0, 2, 3)), rel=1e-9)
    assert run("cifar10", source, tmp_path / "again").exit_code == 0
    for name in ("train.arrow", "test.arrow"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
    assert CliRunner().invoke(kdcl, ["data", "inspect", str(tmp_path / "out/train.arrow")]).exit_code == 0


def test_cifar100_has_its_fine_labels(tmp_path: Path) -> None:
    source = write_cifar100(tmp_path / "source", 20, 7)
    import_cifar("cifar100", source.parent, tmp_path / "out", checksums=False)
    train, test = (ArrowDataset(str(tmp_path / "out" / f"{split}.arrow")) for split in ("train", "test"))
    assert train.labels.tolist() == read_pickle((source / "train").read_bytes(), "x")[b"fine_labels"]
    assert train.classes[99] == "fine_99"
    assert (len(train), len(test)) == (20, 7)


def test_checksums(ten: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refused("cifar10", ten, "MD5 expected c99cafc152244af753f735de768cd75f, found ")
    refused("cifar10", pack(ten), "MD5 expected c58f30108f718f92721af3b95e74349a, found ")
    official(monkeypatch, "cifar10", ten)
    data = bytearray((ten / "test_batch").read_bytes())
    data[500] ^= 1
    (ten / "test_batch").write_bytes(data)
    refused("cifar10", ten, "test_batch: not the official file")


def test_the_checksums_are_those_that_torchvision_lists() -> None:
    from torchvision import datasets

    for kind, theirs in (("cifar10", datasets.CIFAR10), ("cifar100", datasets.CIFAR100)):
        ours = LAYOUTS[kind]
        listed = dict(theirs.train_list + theirs.test_list) | {theirs.meta["filename"]: theirs.meta["md5"]}
        assert ours.md5 == listed
        assert (ours.archive_md5, ours.folder) == (theirs.tgz_md5, theirs.base_folder)
        assert ours.names.decode() == theirs.meta["key"]


# -- what is wrong with a source -----------------------------------------------------------------


def test_what_is_no_archive(tmp_path: Path, ten: Path) -> None:
    refused("cifar10", tmp_path / "missing", "no such file or folder")
    text = tmp_path / "text.tar.gz"
    text.write_text("no archive")
    refused("cifar10", text, "not a tar.gz archive", "--no-checksum")
    whole = pack(ten).read_bytes()
    for length in range(0, len(whole), len(whole) // 9):
        text.write_bytes(whole[:length])
        refused("cifar10", text, "text.tar.gz", "--no-checksum")
    damaged = bytearray(whole)
    damaged[len(whole) // 2] ^= 255
    text.write_bytes(damaged)
    refused("cifar10", text, "text.tar.gz", "--no-checksum")


def test_an_archive_that_unpacks_to_gigabytes(tmp_path: Path) -> None:
    """A member that is wanted, and bytes that follow the archive: neither is read to its end."""
    for wanted in (True, False):
        with gzip.open(tmp_path / "bomb.tar.gz", "wb", compresslevel=1) as file:
            with tarfile.open(fileobj=file, mode="w|") as archive:
                member = tarfile.TarInfo("cifar-10-batches-py/data_batch_1" if wanted else "other")
                member.size = 100_000_000 if wanted else 0
                archive.addfile(member, Zeros())  # type: ignore[arg-type]
            for _ in range(0 if wanted else 100):
                file.write(bytes(1_000_000))
        words = "it unpacks to more than 10 times its size"
        refused("cifar10", tmp_path / "bomb.tar.gz", words, "--no-checksum")


class Zeros:
    """A file of zeros without an end."""

    def read(self, size: int) -> bytes:
        return bytes(size)


@pytest.mark.parametrize("kind", ["fifo", "device", "socket", "folder"])
@pytest.mark.parametrize("checksum", [True, False])
def test_what_is_no_regular_file(kind: str, checksum: bool, tmp_path: Path, ten: Path) -> None:
    """As the archive, and as a file of the unpacked folder."""
    more = () if checksum else ("--no-checksum",)
    (ten / "test_batch").unlink()
    for path in (tmp_path / "archive.tar.gz", ten / "test_batch"):
        make_special(path, kind)
    if kind != "folder":  # a folder is an unpacked archive
        refused("cifar10", tmp_path / "archive.tar.gz", "not a regular file", *more)
    refused("cifar10", ten, "a folder, not a file" if kind == "folder" else "test_batch", "--no-checksum")


def test_missing_members(ten: Path) -> None:
    (ten / "data_batch_3").unlink()
    refused("cifar10", ten, "data_batch_3: cannot be read", "--no-checksum")
    refused("cifar10", pack(ten), "the archive lacks cifar-10-batches-py/data_batch_3", "--no-checksum")


def test_members_are_never_written_by_their_names(tmp_path: Path, ten: Path) -> None:
    path = tmp_path / "evil.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for name in ("../outside", str(tmp_path / "absolute")):
            entry = tarfile.TarInfo(name)
            entry.size = 4
            archive.addfile(entry, io.BytesIO(b"evil"))
        link = tarfile.TarInfo("cifar-10-batches-py/test_batch")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    refused("cifar10", path, "the archive lacks cifar-10-batches-py/batches.meta", "--no-checksum")
    assert not (tmp_path / "outside").exists()
    assert not (tmp_path / "absolute").exists()


class Runs:
    """A pickle of this would make a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def with_state(state: bytes) -> bytes:
    """A protocol 2 pickle of {b"data": an array with this state}."""
    start = b"\x80\x02}U\x04datacnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n"
    return start + b"K\x00\x85U\x01b\x87R" + state + b"bs."


KIND = b"cnumpy\ndtype\nU\x02%sK\x00K\x01\x87R"
SHAPE = b"J" + struct.pack("<i", 4) + b"\x85"
HOSTILE: dict[str, tuple[Callable[[Path], bytes], str]] = {
    "code": (lambda path: pickle.dumps({b"data": Runs(path)}, 2), "nothing was run"),
    "nested code": (lambda path: pickle.dumps({b"labels": [Runs(path)]}, 4), "nothing was run"),
    "os.system": (lambda path: b"cposix\nsystem\nU\x05false\x85R.", "'posix.system'"),
    "old protocol": (lambda path: b"(S'false'\nios\nsystem\n.", "'os.system'"),
    "getattr": (lambda path: b"c__builtin__\neval\nU\x031+1\x85R.", "eval"),
    "dotted": (lambda path: b"\x80\x04\x8c\x05numpy\x8c\x0fndarray.__new__\x93.", "numpy.ndarray.__new__"),
    "many lines": (lambda path: b"\x80\x04\x8c\x03a\nb\x8c\x03c\nd\x93.", "nothing was run"),
    "codec": (lambda path: b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00xX\x03\x00\x00\x00bz2\x86R.", "bz2"),
    "persistent": (lambda path: b"\x80\x02U\x01xQ.", "persistent"),
    "extension": (lambda path: b"\x80\x02\x82\x07.", "extension"),
    "far memo": (
        lambda path: b"\x80\x02}r\xff\xff\xff\xff.",
        "stores a value as number 4,294,967,295 after 2",
    ),
    "far memo in text": (lambda path: b"(S'r.'\np2147483647\nd.", "as number 2,147,483,647 after 2"),
    "far memo behind text": (
        lambda path: b"\x80\x04C\x02r.cnumpy\ndtype\nr\xff\xff\xff\x7f.",
        "as number 2,147,483,647 after 3",
    ),
    "not a dict": (lambda path: b"\x80\x02].", "holds a list"),
    "empty": (lambda path: b"", "EOFError"),
    "text": (lambda path: b"info", "cannot be read"),
    "objects": (
        lambda path: with_state(b"(K\x01" + SHAPE + KIND % b"O8" + b"\x89U\x08AAAAAAAAt"),
        "of type 'O8', not of whole numbers",
    ),
    "too short": (
        lambda path: with_state(b"(K\x01" + SHAPE + KIND % b"u1" + b"\x89U\x03abct"),
        "holds 3 bytes",
    ),
    "too big": (
        lambda path: with_state(b"(K\x01J\xff\xff\xff\x7f\x85" + KIND % b"u1" + b"\x89U\x03abct"),
        "holds 3 bytes",
    ),
    "no state": (lambda path: with_state(b"N"), "cannot be read"),
    "huge string": (lambda path: b"\x80\x02T\xff\xff\xff\x7fabc.", "truncated"),
    "huge bytes": (lambda path: b"\x80\x03B\xff\xff\xff\x7fabc.", "truncated"),
    "wide pixels": (
        lambda path: pickle.dumps({b"data": np.zeros((2, 3072), np.int16), b"labels": [0, 1]}),
        "'data' must be of type uint8 (found int16)",
    ),
    "floats": (lambda path: pickle.dumps({b"data": np.zeros(2)}, 4), "of type 'f8', not of whole numbers"),
    "float label": (lambda path: pickle.dumps({b"labels": [np.float64(1)]}), "not of whole numbers"),
    "column order": (
        lambda path: pickle.dumps({b"data": np.zeros((2, 3), np.uint8, "F")}, 5),
        "not of whole numbers in C order",
    ),
    "key twice": (lambda path: pickle.dumps({b"data": 1, "data": 2}), "a key twice"),
    "class state": (lambda path: b"\x80\x02cnumpy\nndarray\n}U\x01aK\x01sb0}.", "TypeError"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_pickles_run_nothing(name: str, tmp_path: Path, ten: Path) -> None:
    make, words = HOSTILE[name]
    (ten / "data_batch_2").write_bytes(make(tmp_path / "touched"))
    refused("cifar10", ten, words, "--no-checksum")
    assert not (tmp_path / "touched").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({b"labels": [10] * 2}, "the label in row 0 is 10, not one of 0 to 9"),
        ({b"labels": [0, -1]}, "the label in row 1 is -1"),
        ({b"labels": [0]}, "must hold 2 labels (found 1)"),
        ({b"labels": [0, b"1"]}, "a label is not a whole number"),
        ({b"labels": b"01"}, "must hold 2 labels (found none)"),
        ({b"data": np.zeros((2, 3071), np.uint8)}, "array of N x 3072 bytes (found shape (2, 3071))"),
        ({b"data": np.zeros((0, 3072), np.uint8)}, "found shape (0, 3072)"),
        ({b"data": [1]}, "found shape None"),
        ({b"labels": np.zeros((2, 1), np.uint8)}, "a label is not a whole number"),
        ({b"labels": np.zeros(3, np.uint8)}, "must hold 2 labels (found 3)"),
    ],
)
def test_wrong_content(change: dict[bytes, Any], words: str, ten: Path) -> None:
    content = {b"data": np.zeros((2, 3072), np.uint8), b"labels": [0, 1]} | change
    (ten / "data_batch_2").write_bytes(python2_pickle(content))
    refused("cifar10", ten, words, "--no-checksum")


def test_wrong_class_names(ten: Path) -> None:
    for meta in ({}, {b"label_names": []}, {b"label_names": [1]}):
        (ten / "batches.meta").write_bytes(python2_pickle(meta))
        refused("cifar10", ten, "lacks the class names 'label_names'", "--no-checksum")
    (ten / "batches.meta").write_bytes(python2_pickle({b"label_names": [b"x", b"x"]}))
    refused("cifar10", ten, "names a class twice", "--no-checksum")


def test_places_that_cannot_be_written(tmp_path: Path, ten: Path) -> None:
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "mine").write_text("mine")
    for target, words in (
        (taken, "exists already"),
        (taken / "mine", "exists already"),
        (taken / "mine" / "below", "cannot be written"),
    ):
        result = run("cifar10", ten, target, "--no-checksum")
        assert (result.exit_code, result.output.count("\n")) == (2, 1), result.output
        assert words in result.output
    assert [path.name for path in taken.iterdir()] == ["mine"]
    (tmp_path / "out.part").mkdir()
    result = run("cifar10", ten, tmp_path / "out", "--no-checksum")
    assert "out.part: left by a command" in result.output
    (tmp_path / "out.part").rmdir()
    (tmp_path / "out").mkdir()
    assert run("cifar10", ten, tmp_path / "out", "--no-checksum").exit_code == 0


# -- the writer's batches ------------------------------------------------------------------------

INFO = Info(("x", "y"), "raw", 1, (1, 2, 2), (0.5,), (0.5,))


def test_batches_are_the_same_file_as_samples(tmp_path: Path) -> None:
    images = np.arange(5 * 4, dtype=np.uint8).reshape(5, 1, 2, 2)
    labels = np.array([0, 1, 0, 1, 1])
    samples = [(int(label), image.tobytes()) for label, image in zip(labels, images, strict=True)]
    first = write_dataset(tmp_path / "a.arrow", samples, INFO)
    second = write_batches(tmp_path / "b.arrow", [(labels, images)], INFO)
    assert (tmp_path / "a.arrow").read_bytes() == (tmp_path / "b.arrow").read_bytes()
    assert first == second == content_digest(tmp_path / "b.arrow")
    backwards = images[::-1]  # not contiguous
    write_batches(tmp_path / "c.arrow", [(labels, backwards)], INFO)
    assert bytes(ArrowDataset(str(tmp_path / "c.arrow")).data(0)) == images[4].tobytes()


def test_the_digest_sees_labels_lengths_and_bytes(tmp_path: Path) -> None:
    info = Info(("x", "y"), "encoded", 3, None, (0.5,) * 3, (0.5,) * 3)
    contents = [
        [(0, b"ab"), (1, b"c")],
        [(0, b"a"), (1, b"bc")],
        [(1, b"ab"), (1, b"c")],
        [(0, b"ab"), (1, b"d")],
        [(0, b""), (1, b"")],
    ]
    digests = {write_dataset(tmp_path / "a.arrow", content, info) for content in contents}
    assert len(digests) == len(contents)


@pytest.mark.parametrize(
    ("labels", "images", "words"),
    [
        ([0], np.zeros((1, 5), np.uint8), "do not fit"),
        ([0], np.zeros((1, 4), np.int8), "do not fit"),
        ([0, 1], np.zeros((1, 4), np.uint8), "cannot be written"),
        ([2], np.zeros((1, 4), np.uint8), "there are 2 classes"),
        ([2**40], np.zeros((1, 4), np.uint8), "cannot be written"),
        ([0], [b"abcde"], "cannot be written"),
    ],
)
def test_batches_that_do_not_fit(tmp_path: Path, labels: Any, images: Any, words: str) -> None:
    with pytest.raises(DataError, match=words):
        write_batches(tmp_path / "a.arrow", [(labels, images)], INFO)
    assert not list(tmp_path.iterdir())


def test_a_file_that_differs_when_read_back_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kdcl_dist.data import writer

    def damage(path: Path) -> str:
        data = path.read_bytes()
        path.write_bytes(data.replace(b"\x07\x08\x09\x0a", b"\x07\x08\x09\x0b"))
        return content_digest(path)

    monkeypatch.setattr(writer, "content_digest", damage)
    with pytest.raises(DataError, match="differs when read back"):
        write_batches(tmp_path / "a.arrow", [([0], np.array([[7, 8, 9, 10]], np.uint8))], INFO)
    assert not list(tmp_path.iterdir())

"""Importing WebDataset's tar files, hostile ones too: nothing is unpacked to disk, and memory is bounded."""

from __future__ import annotations

import gzip
import io
import json
import random
import subprocess
import tarfile
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from changed_bytes import changed
from importing import content, encoded, imported, make_special, refused, run

from kdcl_dist.data.dataset import ArrowDataset
from kdcl_dist.data.importers import images as engine
from kdcl_dist.data.importers import webdataset
from kdcl_dist.data.importers.split_files import split_files
from kdcl_dist.data.importers.tar_shard import tar_members
from kdcl_dist.data.importers.webdataset import WebDataset
from kdcl_dist.errors import DataError

IMAGES = [encoded("PNG", seed=i) for i in range(8)]
Members = list[tuple[str, bytes]]


def tar_bytes(members: Members, kind: int = tarfile.USTAR_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=kind) as archive:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def header(name: str, **fields: Any) -> bytes:
    """One header of 512 bytes, in the format of POSIX 1988; a size may be below 0."""
    member = tarfile.TarInfo(name)
    for field, value in fields.items():
        setattr(member, field, value)
    return member.tobuf(tarfile.GNU_FORMAT)


def body(members: Members) -> bytes:
    """Members as in a tar file, without its end."""
    return b"".join(header(name, size=len(data)) + data + bytes(-len(data) % 512) for name, data in members)


def pairs(labels: list[Any], start: int = 0) -> Members:
    """A sample for each label: key.cls, key.png."""
    return [
        member
        for i, label in enumerate(labels, start)
        for member in ((f"{i:04d}.cls", str(label).encode()), (f"{i:04d}.png", IMAGES[i]))
    ]


def write(path: Path, members: Members | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(members if isinstance(members, bytes) else tar_bytes(members))
    return path


def samples(path: Path) -> list[tuple[bytes, str]]:
    found = ArrowDataset(str(path))
    return [(bytes(found.data(i)), found.classes[label]) for i, label in enumerate(found.labels)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two training shards and one for testing."""
    write(tmp_path / "source" / "train-0000.tar", pairs([1, 0, 3]))
    write(tmp_path / "source" / "train-0001.tar", pairs([0, 1], start=3))
    write(tmp_path / "source" / "test-0000.tar", pairs([3, 0], start=5))
    return tmp_path / "source"


def test_a_folder_of_shards(folder: Path) -> None:
    out = imported("webdataset", folder)
    assert samples(out / "train") == list(zip(IMAGES[:5], "10301", strict=True))
    assert samples(out / "test") == list(zip(IMAGES[5:7], "30", strict=True))
    assert ArrowDataset(str(out / "train")).classes == ("0", "1", "3")
    assert not (out / "rejected.txt").exists()
    result = run("webdataset", folder, folder.parent / "again", "--workers", "2")
    assert result.exit_code == 0, result.output
    assert content(out) == content(folder.parent / "again")


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("packed", [False, True])
def test_tar_files_of_all_kinds(tmp_path: Path, kind: int, packed: bool) -> None:
    deep = "größe" * 30 if kind != tarfile.USTAR_FORMAT else "deep"
    members: Members = [
        (f"./{deep}/a.JPG", encoded(seed=1)),
        (f"./{deep}/a.cls", b" 12\n"),
        ("b.v2.seg.png", IMAGES[2]),
        ("b.png", IMAGES[3]),
        ("b.cls", b"7"),
        ("b.json", b"not read"),
        ("c.jpeg", encoded(seed=4)),
        ("c.json", b'{"label": 7, "other": [1]}'),
        ("c.txt", b"a caption"),
    ]
    data = tar_bytes(members, kind)
    path = write(tmp_path / ("x.tar.gz" if packed else "x.tar"), gzip.compress(data) if packed else data)
    out = imported("webdataset", path)
    assert samples(out / "train") == [(encoded(seed=1), "12"), (IMAGES[3], "7"), (encoded(seed=4), "7")]
    assert ArrowDataset(str(out / "train")).classes == ("7", "12")


def test_folders_hidden_twins_and_names_without_a_dot_are_no_samples(tmp_path: Path) -> None:
    data = header("0.png", type=tarfile.DIRTYPE) + header("x/", type=tarfile.DIRTYPE)
    members = [("._0000.png", b"twin"), ("README", b"text"), *pairs([0, 1])]
    out = imported("webdataset", write(tmp_path / "x.tar", data + tar_bytes(members)))
    assert [image for image, _ in samples(out / "train")] == IMAGES[:2]
    assert not (out / "rejected.txt").exists()


def test_class_names(folder: Path) -> None:
    names = folder.parent / "names.txt"
    names.write_text("ant\nbee\ncat\ndog\n")
    out = imported("webdataset", folder, "--classes", str(names))
    assert [name for _, name in samples(out / "train")] == ["bee", "ant", "dog", "ant", "bee"]
    assert ArrowDataset(str(out / "test")).classes == ("ant", "bee", "cat", "dog")
    names.write_text("ant\nbee\n")
    refused(
        "webdataset", folder, "the train files have the label 3 in a .cls or .json", "--classes", str(names)
    )


@pytest.mark.parametrize("json_field", [None, "kind"])
def test_labels_that_are_names(tmp_path: Path, json_field: str | None) -> None:
    texts = ["dog", "größe", "dog"]
    members: Members = []
    for i, text in enumerate(texts):
        label = json.dumps({"kind": text}) if json_field else text
        members += [(f"{i}.{'json' if json_field else 'cls'}", label.encode()), (f"{i}.png", IMAGES[i])]
    names = tmp_path / "names.txt"
    names.write_text("größe\ncat\ndog\n")
    more = ("--label", json_field) if json_field else ()
    source = write(tmp_path / "x.tar", members)
    out = imported("webdataset", source, *more, "--classes", str(names))
    assert [name for _, name in samples(out / "train")] == texts
    assert ArrowDataset(str(out / "train")).classes == ("größe", "cat", "dog")
    out.rename(tmp_path / "first")
    assert ArrowDataset(str(imported("webdataset", source, *more) / "train")).classes == ("dog", "größe")


def test_one_file_and_a_fraction(tmp_path: Path) -> None:
    source = write(tmp_path / "x.tar", pairs([0, 1, 0, 1, 0, 1, 0, 1]))
    out = imported("webdataset", source, "--test-fraction", "0.25", "--grey")
    assert sorted(ArrowDataset(str(out / "test")).labels.tolist()) == [0, 1]
    assert len(samples(out / "train")) == 6
    assert ArrowDataset(str(out / "train")).channels == 1


def test_patterns_with_braces(tmp_path: Path) -> None:
    for name in ("a-8", "a-9", "a-10", "b-09", "b-10", "c"):
        write(tmp_path / f"{name}.tar", b"")
    write(tmp_path / "a-8.tar.idx", b"")

    def found(pattern: str) -> list[str]:
        return [file.stem for file in split_files(tmp_path, pattern, None, (".tar", ".x"))["train"]]

    assert found("a-{8..11}.tar") == ["a-8", "a-9", "a-10"]
    assert found("b-{08..10}.tar") == ["b-09", "b-10"]
    assert found("{b-10,a-*,a-9}.tar") == ["b-10", "a-10", "a-8", "a-9"]
    assert sorted(found("{{c,b-09},a-{8..9}}.tar")) == ["a-8", "a-9", "b-09", "c"]
    for pattern, words in (
        ("a-{0..999999999}.tar", "more than 100,000 names"),
        ("{a,b}" * 17, "more than 100,000 names"),
        ("{9..8}.tar", "no .tar or .x files match"),
        ("{x}.tar", "no .tar or .x files match"),
        ("", "matches no files"),
    ):
        with pytest.raises(DataError, match=words):
            found(pattern)


BIG = b"\0" * 1001
LISTED: dict[str, tuple[Members | bytes, str]] = {
    "no image": ([("x.cls", b"0")], "it has no images: members .jpg, .jpeg or .png"),
    "two images": ([("x.cls", b"0"), ("x.jpg", IMAGES[0]), ("x.png", IMAGES[0])], "it has 2 images"),
    "a member twice": (
        [("x.cls", b"0"), ("x.png", IMAGES[0]), ("x.PNG", IMAGES[1])],
        "it has two members .png",
    ),
    "a label twice": ([("x.cls", b"0"), ("x.cls", b"1"), ("x.png", IMAGES[0])], "it has two members .cls"),
    "no label": ([("x.png", IMAGES[0])], "it has no label: a member .cls or .json"),
    "empty label": ([("x.cls", b" \n"), ("x.png", IMAGES[0])], "its label must have 1 to 1,000 characters"),
    "long label": ([("x.cls", BIG), ("x.png", IMAGES[0])], "its .cls is larger than 1,000 bytes"),
    "label no text": ([("x.cls", b"\xff"), ("x.png", IMAGES[0])], "can't decode"),
    "no json": ([("x.json", b"{"), ("x.png", IMAGES[0])], "Expecting property name"),
    "deep json": ([("x.json", b"[" * 500_000), ("x.png", IMAGES[0])], "RecursionError"),
    "huge number": ([("x.json", b'{"label": %s}' % (b"9" * 1500)), ("x.png", IMAGES[0])], "(it has 1,500)"),
    "list": ([("x.json", b"[0]"), ("x.png", IMAGES[0])], "has no field 'label' with a whole number"),
    "bool": ([("x.json", b'{"label": true}'), ("x.png", IMAGES[0])], "has no field 'label' with"),
    "float": ([("x.json", b'{"label": 0.0}'), ("x.png", IMAGES[0])], "has no field 'label' with"),
    "other field": ([("x.json", b'{"cls": 0}'), ("x.png", IMAGES[0])], "has no field 'label' with"),
    "no png": ([("x.cls", b"0"), ("x.png", b"text")], "not a JPEG or PNG image"),
    "empty": ([("x.cls", b"0"), ("x.png", b"")], "not a JPEG or PNG image"),
    "above": ([("../x.cls", b"0"), ("../x.png", IMAGES[0])], "its name leads out of the archive"),
    "within above": ([("a/../../x.cls", b"0"), ("a/../../x.png", IMAGES[0])], "its name leads out of"),
    "absolute": ([("/x.cls", b"0"), ("/x.png", IMAGES[0])], "its name leads out of the archive"),
    "twice": ([*pairs([0], start=0)], "the file has a sample of this name before"),
    **{
        kind: (
            body([("x.cls", b"0")]) + header("x.png", type=code, linkname="/etc/passwd"),
            "its .png is no plain file, but a link, a device or the like",
        )
        for kind, code in {
            "symbolic link": tarfile.SYMTYPE,
            "hard link": tarfile.LNKTYPE,
            "device": tarfile.CHRTYPE,
            "fifo": tarfile.FIFOTYPE,
        }.items()
    },
}


@pytest.mark.parametrize("name", LISTED)
def test_a_sample_that_is_rejected_is_listed(name: str, tmp_path: Path) -> None:
    """It stands between others, which are imported; nothing is written by its name."""
    wrong, words = LISTED[name]
    wrong = wrong if isinstance(wrong, bytes) else body(wrong)
    inner = tmp_path / "a" / "b"
    whole = body(pairs([0, 1])) + wrong + body(pairs([0], start=5)) + bytes(1024)
    out = imported("webdataset", write(inner / "train.tar", whole))
    assert samples(out / "train") == [(IMAGES[0], "0"), (IMAGES[1], "1"), (IMAGES[5], "0")]
    lines = (out / "rejected.txt").read_text().splitlines()
    assert len(lines) == 1
    key, reason = lines[0].split("\t")
    assert key.startswith("train.tar ")
    assert words in reason
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a"]
    assert sorted(path.name for path in inner.iterdir()) == ["out", "train.tar"]


def bomb(member: bytes, size: int) -> bytes:
    """A packed tar file with a member of `size` zeros."""
    buffer = io.BytesIO()
    with gzip.GzipFile(fileobj=buffer, mode="wb", compresslevel=1) as file:
        file.write(member)
        for _ in range(size // 1_000_000):
            file.write(bytes(1_000_000))
    return buffer.getvalue()


WHOLE = tar_bytes(pairs([0, 1]))
ODD = header("0.png", size=-512)
HOSTILE: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty": (lambda: b"", "empty file"),
    "text": (lambda: b"<html>" * 200, "not a tar file, or a damaged one"),
    "zip": (lambda: b"PK\3\4" + bytes(3000), "not a tar file, or a damaged one"),
    "zeros": (lambda: bytes(10240), "hold no samples"),
    "no end": (lambda: WHOLE.rstrip(b"\0"), "not a tar file, or a damaged one"),
    "no end mark": (lambda: header("0.txt"), "its end mark is missing"),
    "damaged header": (lambda: header("0.txt") + b"x" * 512 + bytes(1024), "no header before byte 1,024"),
    "two files": (lambda: WHOLE + WHOLE, "it goes on behind its end mark"),
    "packed cut": (lambda: gzip.compress(WHOLE)[:-9], "EOFError"),
    "no checksum": (lambda: gzip.compress(WHOLE)[:-8] + bytes(8), "CRC check failed"),
    "packed end": (
        lambda: gzip.compress(WHOLE.rstrip(b"\0") + bytes(100)),
        "not a tar file, or a damaged one",
    ),
    "negative": (lambda: header("a.txt") + ODD + bytes(1024), "is of a negative size"),
    "far negative": (lambda: header("0.txt", size=-(2**40)) + bytes(1024), "is of a negative size"),
    "lie": (lambda: header("0.png", size=2**40) + bytes(1024), "would end at 1,099,511,628,288"),
    "long name": (
        lambda: header("x", type=tarfile.GNUTYPE_LONGNAME, size=2**40),
        "of more than 100,000 bytes",
    ),
    "negative name": (lambda: header("x", type=tarfile.GNUTYPE_LONGNAME, size=-1024), "read length must be"),
    "extended": (lambda: header("x", type=tarfile.XHDTYPE, size=2**33) + bytes(1024), "100,000 bytes"),
    "many headers": (lambda: (header("x", type=tarfile.XGLTYPE)) * 1000, "not a tar file, or a damaged one"),
    "packed": (lambda: bomb(header("0.png", size=10**8), 10**8), "would end at 100,000"),
    "packed padding": (lambda: bomb(WHOLE, 10**8), "it unpacks to more than 10 times its size"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files(name: str, tmp_path: Path) -> None:
    make, words = HOSTILE[name]
    source = write(tmp_path / "x.tar", make())
    refused("webdataset", source, words)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.tar"]


def test_a_file_cut_anywhere_is_refused(tmp_path: Path) -> None:
    for length in range(0, len(WHOLE.rstrip(b"\0")) + 512, 100):
        refused(
            "webdataset", write(tmp_path / "x.tar", WHOLE[:length]), "x.tar: not a tar file, or a damaged"
        )


def test_a_sparse_member_is_not_unfolded(tmp_path: Path) -> None:
    """It claims a terabyte, and has none of it."""
    (tmp_path / "tree").mkdir()
    with (tmp_path / "tree" / "0009.png").open("wb") as file:
        file.truncate(2**40)
    (tmp_path / "tree" / "0009.cls").write_text("0")
    subprocess.run(["tar", "-C", "tree", "-Scf", "x.tar", "0009.cls", "0009.png"], cwd=tmp_path, check=True)
    with tarfile.open(tmp_path / "x.tar") as archive:
        assert archive.getmember("0009.png").size == 2**40
    source = tmp_path / "source"
    write(source / "train-0.tar", pairs([0, 1]))
    (tmp_path / "x.tar").rename(source / "train-1.tar")
    members = tar_members(source / "train-1.tar", lambda member: True)
    assert [data for _, data in members] == [b"0", None]
    out = imported("webdataset", source)
    assert "its .png is no plain file" in (out / "rejected.txt").read_text()


@pytest.mark.parametrize("kind", ["fifo", "device", "socket"])
def test_what_is_no_regular_file(kind: str, tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    make_special(tmp_path / "source" / "train.tar", kind)
    refused(
        "webdataset", tmp_path / "source", "train.tar: not a tar file, or a damaged one: not a regular file"
    )
    refused("webdataset", tmp_path / "source" / "train.tar", "not a regular file")


def test_sources_that_are_no_data_set(tmp_path: Path) -> None:
    source = tmp_path / "source"
    refused("webdataset", source, "no such file or folder")
    refused("webdataset", source / "train-{0..3}.tar", "give the folder, and the pattern as --train")
    source.mkdir()
    refused("webdataset", source, "no .tar, .tar.gz or .tgz files match 'train*' (--train)")
    write(source / "train.tar", [("0.png", IMAGES[0]), ("1.txt", b"")])
    refused(
        "webdataset", source, "no sample of the train files has a label: a member .cls, or a member .json"
    )
    write(source / "train.tar", pairs([0, "dog"]))
    refused("webdataset", source, "some labels in a .cls or .json member are whole numbers, others are not")
    write(source / "train.tar", pairs([0, 1]))
    write(source / "test.tar", pairs([0, -1]))
    refused("webdataset", source, "the test files have the label -1 in a .cls or .json member")
    write(source / "test.tar", pairs(["caf\u00e9", "cafe\u0301"]))
    write(source / "train.tar", pairs(["caf\u00e9", "tea"]))
    refused("webdataset", source, "in two spellings of Unicode")
    write(source / "train.tar", [("0.cls", b"0"), ("0.png", b"x"), *pairs([1, 1], start=1)])
    (source / "test.tar").unlink()
    refused("webdataset", source, "train: no readable image in 1 of 2 classes: 0; see ")


def test_an_interrupted_import_goes_on(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = imported("webdataset", folder)
    whole.rename(folder.parent / "whole")
    written, write_dataset = [], engine.write_dataset

    def once(path: Path, *rest: Any) -> str:
        written.append(path.parent.name)
        if written == ["train", "test"]:
            raise KeyboardInterrupt
        return write_dataset(path, *rest)

    monkeypatch.setattr(engine, "write_dataset", once)
    arguments = ("webdataset", folder, folder.parent / "out", "--workers", "0")
    assert run(*arguments).exit_code == 130
    write(folder / "more.tar", b"")  # belongs to no split
    assert run(*arguments).exit_code == 0
    assert written == ["train", "test", "test"]
    assert content(folder.parent / "out") == content(folder.parent / "whole")


def test_what_is_not_wanted_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Labels are found without the images."""
    path = write(tmp_path / "x.tar", pairs([0, 1, 0]))
    found = [(member.name, data) for member, data in tar_members(path, lambda member: member.size < 10)]
    assert [data for _, data in found] == [b"0", None, b"1", None, b"0", None]
    read: list[bytes | None] = []

    def noted(*arguments: Any) -> Iterator[Any]:
        for member, data in tar_members(*arguments):
            read.append(data)
            yield member, data

    monkeypatch.setattr(webdataset, "tar_members", noted)
    source = WebDataset(path, label="label", classes=None)
    assert read == [b"0", None, b"1", None, b"0", None]
    assert source.counts == {"train": 3}
    assert [len(item.data) for item in source.items("train")] == [len(image) for image in IMAGES[:3]]


def test_members_are_not_kept(tmp_path: Path) -> None:
    path = write(tmp_path / "x.tar", body([(f"{i}.txt", b"") for i in range(5000)]) + bytes(1024))
    tracemalloc.start()
    assert sum(1 for _ in tar_members(path, lambda member: True)) == 5000
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2_000_000


@pytest.mark.parametrize("kind", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("packed", [False, True])
def test_changed_bytes_are_read_or_refused_in_one_line(kind: int, packed: bool, tmp_path: Path) -> None:
    members = [("é" * 120 + ".cls", b"1"), ("é" * 120 + ".png", IMAGES[0][:600]), *pairs([0])]
    whole, draw, refusals = tar_bytes(members, kind), random.Random(0), []
    for _ in range(400):
        data = bytes(changed(whole, draw))
        path = write(tmp_path / "x.tar", gzip.compress(data, 1) if packed else data)
        try:
            source = WebDataset(path, label="label", classes=None)
            assert all(item.size < 2**31 for item in source.items("train"))
        except DataError as error:
            refusals.append(str(error))
    assert 100 < len(refusals) < 400
    assert not any("\n" in line for line in refusals)

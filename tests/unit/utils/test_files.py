"""Small files from anyone: only regular ones, of a limited size."""

from __future__ import annotations

import io
import os
import resource
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from kdcl_dist.utils.files import BLOCK_BYTES, check_stored, open_regular, read_regular


@pytest.mark.parametrize("size", [0, 1, 9, 10])
def test_a_file_up_to_the_limit(tmp_path: Path, size: int) -> None:
    (tmp_path / "a").write_bytes(b"x" * size)
    (tmp_path / "link").symlink_to(tmp_path / "a")
    assert read_regular(tmp_path / "a", 10) == b"x" * size
    assert read_regular(tmp_path / "link", 10) == b"x" * size


def test_all_else_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "large").write_bytes(b"x" * 11)
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(1 << 40)
    for path, words in {
        tmp_path / "fifo": "not a regular file",
        Path("/dev/zero"): "not a regular file",
        tmp_path: "a folder, not a file",
        tmp_path / "large": "larger than 10 bytes",
        tmp_path / "sparse": "larger than 10 bytes",
    }.items():
        with pytest.raises(ValueError, match=f"^{words}$"):
            read_regular(path, 10)
    with pytest.raises(FileNotFoundError):
        read_regular(tmp_path / "missing", 10)


def test_nothing_is_read_of_a_file_that_is_too_large(tmp_path: Path) -> None:
    """40 GB of zeros, which take no room on the disk; the limit is 2 GB."""
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(40_000_000_000)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match="larger than 2,000,000,000 bytes"):
        read_regular(tmp_path / "sparse", 2_000_000_000)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KB


def test_an_archive_that_unpacks_to_more_than_its_size() -> None:
    for compression, fits in ((zipfile.ZIP_STORED, True), (zipfile.ZIP_DEFLATED, False)):
        with zipfile.ZipFile(made := io.BytesIO(), "w", compression) as archive:
            archive.writestr("a", b"x" * 1_000_000)
        if fits:
            check_stored(made)
            assert made.tell() == 0
            continue
        with pytest.raises(ValueError, match="it unpacks to 1,000,000 bytes, but has "):
            check_stored(made)


def test_other_files_pass_and_damaged_archives_do_not(tmp_path: Path) -> None:
    for data in (b"", b"PK", b"text" * 100):
        check_stored(io.BytesIO(data))
    with pytest.raises(ValueError, match="a damaged archive"):
        check_stored(io.BytesIO(b"PK\3\4" + b"x" * 100))
    (tmp_path / "a").write_bytes(b"x")
    with open_regular(tmp_path / "a") as file:
        assert file.read() == b"x"


class Unbounded:
    """Pickled as a call of `bytearray` with a number."""

    def __reduce__(self) -> tuple[Any, ...]:
        return bytearray, (3_000_000,)


@pytest.mark.parametrize("is_zip", [True, False])
def test_a_pickle_that_asks_for_memory(is_zip: bool) -> None:
    for value, refused in ({"w": torch.zeros(3)}, False), ({"w": Unbounded()}, True):
        torch.save(value, made := io.BytesIO(), _use_new_zipfile_serialization=is_zip)
        if not refused:
            check_stored(made)
            continue
        with pytest.raises(ValueError, match="it holds a bytearray"):
            check_stored(made)


def test_a_compressed_pickle_within_a_large_archive() -> None:
    torch.save({"w": Unbounded()}, made := io.BytesIO())
    with zipfile.ZipFile(made) as archive, zipfile.ZipFile(packed := io.BytesIO(), "w") as other:
        for entry in archive.infolist():
            other.writestr(entry.filename, archive.read(entry), zipfile.ZIP_DEFLATED)
        other.comment = b"x" * 60_000
    with pytest.raises(ValueError, match="it holds a bytearray"):
        check_stored(packed)


@pytest.mark.parametrize("offset", [-9, -5, -1, 0])
def test_the_word_is_found_across_blocks(offset: int) -> None:
    with pytest.raises(ValueError, match="it holds a bytearray"):
        check_stored(io.BytesIO(b"x" * (BLOCK_BYTES + offset) + b"bytearray\n" + b"x" * 10))

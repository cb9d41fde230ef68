"""Small files from anyone: only regular ones, of a limited size."""

from __future__ import annotations

import io
import os
import zipfile
from pathlib import Path

import pytest

from kdcl_dist.utils.files import check_stored, open_regular, read_regular


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

"""Folders that are complete or absent."""

from __future__ import annotations

from pathlib import Path

import pytest

from kdcl_dist.errors import DataError
from kdcl_dist.utils.staging import part_of, publish, staged


def test_a_folder_appears_when_it_is_complete(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "data"
    with staged(folder) as part:
        (part / "file").write_text("content")
        assert not folder.exists()
        assert part.parent == folder.parent
    assert (folder / "file").read_text() == "content"
    assert [path.name for path in folder.parent.iterdir()] == ["data"]


def test_an_empty_folder_may_be_there(tmp_path: Path) -> None:
    with staged(tmp_path) as part:
        (part / "file").touch()
    assert (tmp_path / "file").exists()


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_leaves_nothing(error: type[BaseException], tmp_path: Path) -> None:
    def write() -> None:
        with staged(tmp_path / "data") as part:
            (part / "file").touch()
            raise error

    with pytest.raises(error):
        write()
    assert list(tmp_path.iterdir()) == []


def test_what_exists_stays(tmp_path: Path) -> None:
    folder, file = tmp_path / "folder", tmp_path / "file"
    folder.mkdir()
    (folder / "old").touch()
    file.touch()
    for taken in (folder, file):
        with pytest.raises(DataError, match=f"{taken}: exists already"), staged(taken):
            pytest.fail("entered")
    assert (folder / "old").exists()
    assert {path.name for path in tmp_path.iterdir()} == {"folder", "file"}


def test_a_part_of_another_command_stays(tmp_path: Path) -> None:
    part = part_of(tmp_path / "data")
    part.mkdir()
    (part / "half").touch()
    with pytest.raises(DataError, match=r"data\.part: left by a command"), staged(tmp_path / "data"):
        pytest.fail("entered")
    assert (part / "half").exists()


def test_where_no_folder_can_be(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(DataError, match="cannot be written: NotADirectoryError"),
        staged(tmp_path / "file" / "data"),
    ):
        pytest.fail("entered")


def test_a_folder_that_fills_meanwhile_stays(tmp_path: Path) -> None:
    folder = tmp_path / "data"

    def write() -> None:
        with staged(folder):
            folder.mkdir()
            (folder / "other").touch()

    with pytest.raises(DataError, match="data: cannot be written"):
        write()
    assert [path.name for path in folder.iterdir()] == ["other"]
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_a_link_to_a_folder_is_followed_from_the_start(tmp_path: Path) -> None:
    """What is complete then moves on one disk."""
    (tmp_path / "disk" / "new").mkdir(parents=True)
    (tmp_path / "data").symlink_to(tmp_path / "disk" / "new")
    with staged(tmp_path / "data") as part:
        (part / "file").touch()
    assert part.parent == tmp_path / "disk"
    assert (tmp_path / "data").is_symlink()
    assert (tmp_path / "data" / "file").exists()
    (tmp_path / "later").symlink_to(tmp_path / "disk" / "later")  # which does not exist yet
    with staged(tmp_path / "later"):
        pass
    assert (tmp_path / "later").is_dir()


def test_a_mount_point_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.path.ismount", lambda path: True)
    with pytest.raises(DataError, match="is a mount point"), staged(tmp_path / "data"):
        pytest.fail("entered")
    assert not list(tmp_path.iterdir())


def test_a_relative_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert part_of(Path("data")) == tmp_path / "data.part"
    part_of(Path("data")).mkdir()
    publish(tmp_path / "data.part", Path("data"))
    assert (tmp_path / "data").is_dir()

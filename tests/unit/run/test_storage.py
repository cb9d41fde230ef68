"""Folders on the local disk and behind other file systems of Arrow."""

from __future__ import annotations

import errno
import os
import pickle
import threading
from pathlib import Path

import pytest

from kdcl_dist.errors import RunFolderError, StorageError
from kdcl_dist.run.checkpoint import latest
from kdcl_dist.run.record import read_record
from kdcl_dist.run.run import load_run
from kdcl_dist.run.storage import Folder


@pytest.fixture(params=["local", "file-uri", "mock"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Folder:
    """A local path, a URI, and a file system without rename on a local disk."""
    if request.param == "mock":
        made = Folder("mock:///runs")
        assert made.local is None
        return made
    return Folder(str(tmp_path / "runs") if request.param == "local" else (tmp_path / "runs").as_uri())


def test_files_come_and_go(folder: Folder) -> None:
    assert folder.names("deep") == []
    assert not folder.exists("deep/one")
    assert folder.size("deep/one") == -1
    folder.write("deep/one", b"abc")
    folder.write("deep/one", b"abcd")
    folder.write("deep/two", b"")
    assert folder.read("deep/one") == b"abcd"
    assert folder.size("deep/one") == 4
    assert folder.names("deep") == ["one", "two"]
    assert folder.exists("deep")
    folder.delete_file("deep/two")
    folder.delete_file("deep/two")
    folder.delete("deep")
    folder.delete("deep")
    assert not folder.exists("deep")
    with pytest.raises(FileNotFoundError):
        folder.read("deep/one")


def test_a_folder_below_and_a_copy_in_another_process(tmp_path: Path) -> None:
    below = Folder(str(tmp_path)) / "a" / "b"
    below.write("c", b"x")
    assert (tmp_path / "a/b/c").read_bytes() == b"x"
    assert pickle.loads(pickle.dumps(below)).read("c") == b"x"


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="there is no /proc here")
def test_a_path_where_no_folder_can_be_made_is_named() -> None:
    """The kernel reports a missing file there, though the folder cannot be made."""
    with pytest.raises(RunFolderError, match=r"storage '/proc/runs' cannot be written: .*; choose another"):
        Folder("/proc/runs").check_writable()


def test_nothing_half_written_is_ever_seen(tmp_path: Path) -> None:
    folder, sizes, done = Folder(str(tmp_path)), set(), threading.Event()
    folder.write("file", b"0" * 100_000)

    def watch() -> None:
        while not done.is_set():
            sizes.add(len((tmp_path / "file").read_bytes()))

    watcher = threading.Thread(target=watch)
    watcher.start()
    for number in range(50):
        folder.write("file", bytes([number]) * 100_000)
    done.set()
    watcher.join()
    assert sizes == {100_000}
    assert [path.name for path in tmp_path.iterdir()] == ["file"]  # no temporary file is left


def test_two_processes_may_check_a_storage_at_once(tmp_path: Path) -> None:
    errors: list[BaseException] = []

    def check() -> None:
        try:
            for _ in range(50):
                Folder(str(tmp_path)).check_writable()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=check) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("uri", ["nosuch://bucket/x", "file://"])
def test_a_uri_that_means_nothing_is_named(uri: str) -> None:
    with pytest.raises(RunFolderError, match="storage"):
        Folder(uri).check_writable()


def test_a_file_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match="cannot be written"):
        Folder(str(tmp_path / "file" / "runs")).check_writable()


def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    folder = Folder(str(tmp_path))
    folder.write("a", b"old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="No space left"):
        folder.write("a", b"new")
    assert folder.read("a") == b"old"
    assert folder.names() == ["a"]


def test_a_read_has_a_limit(folder: Folder) -> None:
    folder.write("a", b"x" * 10)
    assert folder.read("a", 10) == b"x" * 10
    with pytest.raises(ValueError, match=r"^a is larger than 9 bytes$"):
        folder.read("a", 9)


def test_a_fifo_and_a_folder_are_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "folder").mkdir()
    for name in ("fifo", "folder"):
        with pytest.raises(ValueError, match=f"^{name} is not a regular file$"):
            Folder(str(tmp_path)).read(name)


def test_names_of_what_is_no_folder(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "metrics")
    (tmp_path / "checkpoints").write_bytes(b"")
    for name in ("metrics", "checkpoints"):
        with pytest.raises(RunFolderError, match=f"/{name} is no folder; delete it$"):
            Folder(str(tmp_path)).names(name)
    assert Folder(str(tmp_path)).names("missing") == []


def test_a_name_that_is_no_text_is_passed_over(tmp_path: Path) -> None:
    for name in (b"a.json", b"\xff.json"):
        Path(os.fsdecode(bytes(tmp_path) + b"/" + name)).write_bytes(b"")
    assert Folder(str(tmp_path)).names() == ["a.json"]


def test_files_of_a_run_that_are_too_large_or_too_deep(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    nested = b"[" * 100_000 + b"]" * 100_000
    folder.write("run.json", nested)
    with pytest.raises(RunFolderError, match=r"run.json is damaged \(Invalid JSON: recursion limit"):
        read_record(folder)
    folder.write("checkpoints/step-00000003/manifest.json", nested)
    warnings: list[str] = []
    assert latest(folder, warnings.append) is None
    assert "recursion limit exceeded" in warnings[0]
    for name in ("run.json", "recipe.yaml", "checkpoints/step-00000003/manifest.json"):
        (tmp_path / name).write_bytes(b"")
        os.truncate(tmp_path / name, 1 << 34)
    with pytest.raises(RunFolderError, match=r"run.json is larger than 10,000,000 bytes"):
        read_record(folder)
    with pytest.raises(RunFolderError, match=r"recipe.yaml is larger than 1,000,000 bytes"):
        load_run(folder.uri)
    assert latest(folder, warnings.append) is None
    assert "manifest.json is larger than 10,000,000 bytes" in warnings[1]

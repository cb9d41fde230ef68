"""The log of a process: appended, rotated, and never in the way of the process."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import pytest

from kdcl_dist.errors import StorageError
from kdcl_dist.run import process_log
from kdcl_dist.run.process_log import ProcessLog, close_all, last_lines, log_of
from kdcl_dist.run.storage import Folder


class Store:
    """An object store: whole files only, and no path on this host."""

    local = None

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.writes = 0
        self.fails = False

    def with_limit(self, limit_s: float) -> Store:
        assert limit_s < 60
        return self

    def write(self, name: str, data: bytes) -> None:
        self.writes += 1
        if self.fails:
            raise StorageError("no answer")
        self.files[name] = data

    def read(self, name: str, limit: int) -> bytes:
        if name not in self.files:
            raise FileNotFoundError(name)
        return self.files[name]


@pytest.fixture
def store() -> Any:
    return Store()


def written(folder: Folder | Any, name: str, *chunks: bytes) -> None:
    """A start of a process that writes these chunks, one after the other."""
    log = ProcessLog(folder, name, clock=lambda: 0.0)
    log.head("process 7 starts")
    for chunk in chunks:
        log.write(chunk)
        settle(log)
    log.close()


def settle(log: ProcessLog) -> None:
    """Wait until the thread has taken what waits."""
    while log._waiting:
        log._thread.join(0.001)


def test_a_restart_is_appended_below_a_heading(tmp_path: Path) -> None:
    written(Folder(str(tmp_path)), "a/0", b"one\n")
    written(Folder(str(tmp_path)), "a/0", b"two\n")
    first, one, second, two = (tmp_path / "logs/a/0.log").read_text().splitlines()
    assert first == second
    assert first.startswith("==== 1970-01-01T")
    assert first.endswith(" a/0: process 7 starts ====")
    assert (one, two) == ("one", "two")


@pytest.mark.parametrize("kind", ["link", "FIFO"])
def test_only_a_file_of_the_run_folder_is_written(tmp_path: Path, kind: str) -> None:
    """A link could lead to a file of somebody else's; a FIFO would hold the thread."""
    (tmp_path / "logs").mkdir()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_bytes(b"kept")
    log = tmp_path / "logs/a.log"
    log.symlink_to(elsewhere) if kind == "link" else os.mkfifo(log)
    made = ProcessLog(Folder(str(tmp_path)), "a")
    made.write(b"lost")
    made.close()
    assert made._thread is not None
    assert not made._thread.is_alive()
    assert elsewhere.read_bytes() == b"kept"


def test_rotation_keeps_the_newest_two_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_log, "FILE_BYTES", 100)
    blocks = [bytes([letter]) * 60 for letter in b"ABCD"]
    written(Folder(str(tmp_path)), "a", *blocks)
    assert sorted(path.name for path in (tmp_path / "logs").iterdir()) == ["a.log", "a.log.1"]
    assert (tmp_path / "logs/a.log").read_bytes() == blocks[3]
    assert (tmp_path / "logs/a.log.1").read_bytes() == blocks[2]


def test_a_full_disk_harms_nobody_and_what_it_cost_is_told(tmp_path: Path) -> None:
    path = tmp_path / "logs/a.log"
    path.parent.mkdir()
    path.symlink_to("/dev/full")
    log = ProcessLog(Folder(str(tmp_path)), "a")
    log.write(b"x" * 1000)
    settle(log)
    log.write(b"y" * 234)
    settle(log)
    path.unlink()
    log.write(b"there is room again\n")
    log.close()
    told, line = path.read_text().splitlines()
    assert told.startswith("==== 1,234 bytes are left out here")
    assert line == "there is room again"


def test_a_storage_that_hangs_holds_nobody_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_log, "WAITING_BYTES", 100)
    monkeypatch.setattr(process_log, "CLOSE_S", 0.05)
    log, goes_on, hangs = ProcessLog(Folder(str(tmp_path)), "a"), threading.Event(), threading.Event()
    append = log._file.append

    def slow(data: bytes) -> None:
        hangs.set()
        goes_on.wait(60)
        append(data)

    monkeypatch.setattr(log._file, "append", slow)
    log.write(b"first\n")
    assert hangs.wait(60)
    for _ in range(30):
        log.write(b"12345678.\n")  # a hundred bytes wait, two hundred are left out
    log.close(0.0)
    goes_on.set()
    log._thread.join(60)
    text = (tmp_path / "logs/a.log").read_text()
    assert text.startswith("first\n==== 200 bytes are left out here")
    assert text.count("12345678.") == 10


def test_a_folder_that_is_deleted_is_made_again(tmp_path: Path) -> None:
    log = ProcessLog(Folder(str(tmp_path / "run")), "a")
    log.write(b"one\n")
    settle(log)
    log.close()
    assert (tmp_path / "run/logs/a.log").read_text() == "one\n"


def test_an_object_store_has_the_log_at_the_end(store: Store) -> None:
    written(store, "a", b"one\n")
    written(store, "a", b"two\n")
    assert [line[:4] for line in store.files["logs/a.log"].decode().splitlines()] == [
        "====",
        "one",
        "====",
        "two",
    ]


def test_an_object_store_is_not_asked_at_every_line(store: Store) -> None:
    written(store, "a", *(b"line\n" for _ in range(50)))
    assert store.writes <= 2  # at the start, and at the end
    assert store.files["logs/a.log"].count(b"line") == 50


def test_an_object_store_keeps_two_files(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_log, "FILE_BYTES", 100)
    blocks = [bytes([letter]) * 60 for letter in b"ABCD"]
    written(store, "a", *blocks)
    assert store.files == {"logs/a.log": blocks[3], "logs/a.log.1": blocks[2]}


def test_an_object_store_that_refuses_harms_nobody(store: Store) -> None:
    store.fails = True
    written(store, "a", b"one\n")
    assert not store.files


def test_all_logs_are_closed_together(tmp_path: Path) -> None:
    logs = [ProcessLog(Folder(str(tmp_path)), name) for name in "abc"]
    for log in logs:
        log.write(b"x\n")
    close_all(logs)
    assert {path.name for path in (tmp_path / "logs").iterdir()} == {"a.log", "b.log", "c.log"}
    logs[0].write(b"late")
    assert (tmp_path / "logs/a.log").read_text() == "x\n"


def test_the_last_lines(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    assert last_lines(folder, "a") == []
    folder.write(log_of("a"), b"".join(b"%d \xff\n" % number for number in range(100)))
    lines = last_lines(folder, "a")
    assert (len(lines), lines[0], lines[-1]) == (20, "80 \ufffd", "99 \ufffd")
    folder.write(log_of("a"), b"x" * 100_000)
    assert [len(line) for line in last_lines(folder, "a")] == [10_000]

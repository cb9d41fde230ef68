"""What a forked process writes reaches its launcher's own output and its log, whatever ends the process."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kdcl_dist.launch import forkserver, output
from kdcl_dist.launch.failures import failure_of
from kdcl_dist.launch.forkserver import start_server
from kdcl_dist.launch.processes import Process, await_ready, finish, receive, start
from kdcl_dist.run.process_log import ProcessLog
from kdcl_dist.run.storage import Folder

LIMIT_S = 120.0


@pytest.fixture(autouse=True)
def _server(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A server that imports little."""
    forkserver._end(forkserver._server_pid())
    monkeypatch.setattr(forkserver, "MODULES", [])
    monkeypatch.setattr(output, "CLOSE_S", 60.0)
    yield
    forkserver._end(forkserver._server_pid())


@pytest.fixture
def log(tmp_path: Path) -> Iterator[ProcessLog]:
    made = ProcessLog(Folder(str(tmp_path)), "a")
    yield made
    made.close()


def writes(log: ProcessLog | None, then: str = "end") -> Process:
    """A process that has written, and was ended by SIGABRT."""
    process = start(start_server(), "a", "forked:write", limit_s=LIMIT_S, log=log)
    assert process.link.poll(LIMIT_S)
    process.link.recv()
    process.link.send(then)
    assert await_ready([process], LIMIT_S)
    assert receive(process) is None
    finish(process)
    return process


def test_all_that_a_process_writes(
    log: ProcessLog, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    process = writes(log)
    log.close()
    lines = (tmp_path / "logs/a.log").read_bytes().splitlines()
    pid = process.handle.pid
    assert lines[0].endswith(b" a: process %d starts ====" % pid)
    outs = [b"printed", b"to descriptor 1", b"by printf"]
    errors = [b"printed to stderr", rb"to descriptor 2 \xff", b"last words"]
    assert [line for line in lines if line in outs] == outs
    assert [line for line in lines if line in errors] == errors
    assert lines[-1] == b"killed by SIGABRT"
    assert capfdbinary.readouterr() == (
        b"".join(b"a | %s\n" % x for x in outs),
        b"".join(b"a | %s\n" % x for x in errors),
    )
    assert failure_of(process).message == (
        "the process of a died (killed by SIGABRT); see logs/a.log in the run folder"
    )


def test_a_process_that_replaces_another_goes_on_in_its_log(log: ProcessLog, tmp_path: Path) -> None:
    pids = [writes(log).handle.pid for _ in range(2)]
    log.close()
    text = (tmp_path / "logs/a.log").read_text(errors="replace")
    assert text.count("last words\n") == 2
    assert (
        text.index(f"process {pids[0]} starts") < text.index("last words") < text.index(f"process {pids[1]} ")
    )


def test_a_child_that_outlives_the_process_holds_nothing_up(log: ProcessLog, tmp_path: Path) -> None:
    """It has the process's ends of the pipes for ten minutes."""
    process = writes(log, "child")
    assert process.output is not None
    assert not process.output._thread.is_alive()
    log.close()
    assert b"last words\n" in (tmp_path / "logs/a.log").read_bytes()


def test_the_output_of_this_process_may_be_closed(
    log: ProcessLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = os.write

    def broken(target: int, data: bytes) -> int:
        if target in (1, 2):
            raise BrokenPipeError
        return write(target, data)

    monkeypatch.setattr(os, "write", broken)
    writes(log)
    log.close()
    assert b"last words\n" in (tmp_path / "logs/a.log").read_bytes()


def test_without_a_log_a_process_has_the_output_of_its_launcher(tmp_path: Path) -> None:
    process = writes(None)
    assert process.output is None
    assert "logs" not in failure_of(process).message


def test_no_descriptor_is_left_open(log: ProcessLog) -> None:
    writes(log)
    gc.collect()
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(3):
        writes(log)
    gc.collect()  # descriptors of processes go with their handles
    deadline = time.monotonic() + LIMIT_S
    while (left := len(list(Path("/proc/self/fd").iterdir()))) > before:  # a thread may still close one
        assert time.monotonic() < deadline, f"{left} descriptors are open, and {before} were"
        time.sleep(0.02)

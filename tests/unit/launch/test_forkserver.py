"""The server that forks processes dies or is stopped: no process, start or folder is lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing import util
from pathlib import Path

import pytest
from cohorts import ROOT, SUPPORT

from kdcl_dist.errors import PreflightError, StartupTimeout
from kdcl_dist.launch import forkserver, processes
from kdcl_dist.launch.forkserver import UNKNOWN_CODE, start_server
from kdcl_dist.launch.processes import Process, await_ready, finish, how_it_ended, receive, start
from kdcl_dist.utils.process import is_over, state_of

#: Seconds that nothing here takes, on any machine.
LIMIT_S = 120.0


@pytest.fixture(scope="module", autouse=True)
def _another_server() -> Iterator[None]:
    """The files that follow find a server with all imports, as at the beginning."""
    yield
    start_server()


@pytest.fixture(autouse=True)
def started(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Process]]:
    """The processes of a test; the server imports little."""
    forkserver._end(forkserver._server_pid())
    monkeypatch.setattr(forkserver, "MODULES", [])
    monkeypatch.setattr(forkserver, "ANSWER_S", 1.0)  # some of these servers are stopped
    made: list[Process] = []
    yield made
    for process in made:
        finish(process)
    forkserver._end(forkserver._server_pid())


@pytest.fixture
def begin(started: list[Process]) -> Callable[[], tuple[Process, int]]:
    """Starts a process; returns it with the id that it sent."""

    def begin() -> tuple[Process, int]:
        process = start(start_server(), "a", "forked:obey", limit_s=LIMIT_S)
        started.append(process)
        assert process.link.poll(LIMIT_S)
        return process, process.link.recv()

    return begin


Begin = Callable[[], tuple[Process, int]]


def server() -> int:
    found = forkserver._server_pid()
    assert found is not None
    return found


def until(happened: Callable[[], object]) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def stop(pid: int) -> None:
    os.kill(pid, signal.SIGSTOP)
    until(lambda: state_of(pid) == "T")


def test_a_temporary_folder_that_holds_no_socket_is_told_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = tmp_path / ("x" * 76)
    long.mkdir()
    monkeypatch.setenv("TMPDIR", str(long))
    monkeypatch.setattr("tempfile.tempdir", str(long))
    with pytest.raises(PreflightError, match=rf"^no server .*TMPDIR={long}, .* of 75 characters at most$"):
        start_server()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP, None])
def test_the_life_of_a_process_does_not_hang_on_the_server(
    begin: Begin, number: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "GRACE_S", 120.0)
    process, pid = begin()
    if number is None:
        monkeypatch.setattr(forkserver, "ANSWER_S", 60.0)
    else:
        os.kill(server(), number)
        until(lambda: state_of(server()) in ("Z", "T"))
    assert process.handle.pid == pid
    assert await_ready([process], 0.3) == []
    assert process.handle.is_alive()
    process.link.send(3)
    assert await_ready([process], LIMIT_S) == [process]
    assert receive(process) is None
    began = time.monotonic()
    finish(process)
    assert time.monotonic() - began < processes.GRACE_S / 2
    assert process.handle.exitcode == (3 if number is None else UNKNOWN_CODE)
    unknown = "how is not known, since the server that forked it has died too"
    assert how_it_ended(process) == ("exit code 3" if number is None else unknown)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_process_is_ended_though_the_server_is_dead_or_stopped(begin: Begin, number: int) -> None:
    process, pid = begin()
    os.kill(server(), number)
    until(lambda: state_of(server()) in ("Z", "T"))
    finish(process)
    assert is_over(pid)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
@pytest.mark.parametrize("imported", [False, True])
def test_a_start_takes_another_server(begin: Begin, number: int, imported: bool) -> None:
    if imported:
        begin()
    else:
        start_server()
    first = server()
    os.kill(first, number)
    until(lambda: state_of(first) in ("Z", "T"))
    process, pid = begin()
    assert server() != first
    assert process.handle.pid == pid
    assert is_over(first)


def test_a_server_dies_in_the_moment_of_a_start(begin: Begin) -> None:
    begin()
    first = server()
    stop(first)
    # The start waits for the process id by then.
    thread = threading.Timer(1.0, os.kill, (first, signal.SIGKILL))
    thread.start()
    _, pid = begin()
    thread.join()
    assert server() != first
    assert not is_over(pid)


def test_a_process_that_was_forked_by_a_server_that_died_then_ends(
    begin: Begin, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, lost = forkserver.forkserver.read_signed, list[int]()

    def dies(pipe: int) -> int:
        pid = int(read(pipe))
        if lost:
            return pid
        lost.append(pid)
        raise EOFError

    monkeypatch.setattr(forkserver.forkserver, "read_signed", dies)
    process, pid = begin()
    assert pid != lost[0]
    until(lambda: is_over(lost[0]))
    assert process.handle.is_alive()


def test_a_server_that_dies_each_time_ends_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forkserver, "MODULES", ["dies_at_import"])
    monkeypatch.syspath_prepend(str(SUPPORT))
    began = time.monotonic()
    with pytest.raises(StartupTimeout, match=r"the process of a .* killed by hand\?"):
        start(start_server(), "a", "forked:obey", limit_s=LIMIT_S)
    assert time.monotonic() - began < LIMIT_S


def test_a_server_that_does_not_come_back_from_an_import_ends_the_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(forkserver, "MODULES", ["hangs_at_import"])
    with pytest.raises(StartupTimeout, match=r"limits\.startup_s"):
        start(start_server(), "a", "forked:obey", limit_s=2.0)


def test_a_server_leaves_other_sockets_of_its_process_alone(begin: Begin) -> None:
    folder = Path(util.get_temp_dir())
    (folder / "listener-x").touch()
    begin()
    assert (folder / "listener-x").exists()


def test_once_a_run_trains_the_server_imports_what_another_coordinator_needs(
    begin: Begin, started: list[Process], monkeypatch: pytest.MonkeyPatch
) -> None:
    def has_numba() -> bool:
        process = start(start_server(), "a", "forked:has_imported", "numba", limit_s=LIMIT_S)
        started.append(process)
        assert process.link.poll(LIMIT_S)
        return bool(process.link.recv())

    monkeypatch.setattr(forkserver, "MODULES", ["kdcl_dist.launch.later_imports"])
    process, pid = begin()
    assert not has_numba()
    os.kill(pid, forkserver.LATER)  # as a batch system may: it is not for those that are forked
    monkeypatch.setattr(forkserver, "LATER_S", 0.05)
    server = forkserver._server_pid()
    start_server(for_run=True)
    deadline = time.monotonic() + LIMIT_S
    while not has_numba():
        assert time.monotonic() < deadline
    assert forkserver._server_pid() == server
    assert process.handle.is_alive()


def test_a_server_that_expects_no_signal_gets_none(begin: Begin, monkeypatch: pytest.MonkeyPatch) -> None:
    """It still imports, or the user's code has started it: the signal would end it and its processes."""
    looks, told = list[int](), list[int]()
    original = forkserver.catches

    def catches(pid: int, number: int) -> bool:
        looks.append(pid)
        return original(pid, number)

    monkeypatch.setattr(forkserver, "MODULES", [])
    process, _ = begin()
    there = server()
    monkeypatch.setattr(forkserver, "catches", catches)
    monkeypatch.setattr(forkserver, "LATER_S", 0.02)
    with pytest.MonkeyPatch.context() as patch:  # the server's own end needs it
        patch.setattr(os, "kill", lambda pid, number: told.append(pid))
        start_server(for_run=True)
        until(lambda: len(looks) >= 3)
        assert set(looks) == {there}
        assert not told
        patch.setattr(forkserver, "catches", lambda pid, number: True)
        until(lambda: told)
    assert told == [there]
    assert process.handle.is_alive()


LAUNCHER = """
import sys, time
from kdcl_dist.launch import forkserver
from kdcl_dist.launch.processes import start
forkserver.MODULES = []
context = forkserver.start_server()
if sys.argv[1] == "forked":
    process = start(context, "a", "forked:with_folder", limit_s=100)
    print(process.link.recv(), flush=True)
print("started", flush=True)
time.sleep(100)
"""


@pytest.mark.parametrize("moment", ["imports", "forked"])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_launcher_that_is_killed_leaves_nothing(moment: str, number: int, tmp_path: Path) -> None:
    """Neither its server's socket, nor that of a process that was forked."""
    command, more = [sys.executable, "-c", LAUNCHER, moment], {"TMPDIR": str(tmp_path)}
    with subprocess.Popen(
        command, cwd=ROOT, env=os.environ | more, stdout=subprocess.PIPE, text=True
    ) as launcher:
        assert launcher.stdout is not None
        forked = [int(line) for line in iter(launcher.stdout.readline, "started\n")]
        assert len(list(tmp_path.glob("pymp-*/listener-*"))) == len(forked)
        launcher.send_signal(number)
    until(lambda: not list(tmp_path.glob("pymp-*")))
    until(lambda: all(is_over(pid) for pid in forked))

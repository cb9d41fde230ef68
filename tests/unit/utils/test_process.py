"""A process ends with its parent; malloc's thresholds are set where there is a glibc."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from cohorts import ROOT

from kdcl_dist.utils import process
from kdcl_dist.utils.process import keep_freed_memory

PARENT = """
import multiprocessing, time
from kdcl_dist.utils.process import end_with_parent

def child(pipe):
    end_with_parent()
    pipe.send(multiprocessing.current_process().pid)
    time.sleep(60)

if __name__ == "__main__":
    context = multiprocessing.get_context("fork")
    parent_end, child_end = context.Pipe()
    context.Process(target=child, args=(child_end,)).start()
    print(parent_end.recv(), flush=True)
    time.sleep(60)
"""


def lives(pid: int) -> bool:
    """Whether a process runs; one that has ended but has not been collected does not."""
    try:
        with open(f"/proc/{pid}/stat") as file:  # noqa: PTH123
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_child_ends_with_its_killed_parent() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PARENT], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert lives(child)
        parent.kill()
    deadline = time.monotonic() + 120
    while lives(child) and time.monotonic() < deadline:
        time.sleep(0.02)
    if lives(child):
        os.kill(child, signal.SIGKILL)
        pytest.fail("the child outlived its parent")


STOPPED = """
import multiprocessing, os, signal, sys, time
from kdcl_dist.utils.process import end_with_parent

def child(pipe, is_stopped):
    end_with_parent(waking=True)
    pipe.send(os.getpid())
    if is_stopped:
        os.kill(os.getpid(), signal.SIGSTOP)
    time.sleep(60)

if __name__ == "__main__":
    context = multiprocessing.get_context(sys.argv[1])
    pids = []
    for is_stopped in (True, False):
        parent_end, child_end = context.Pipe()
        context.Process(target=child, args=(child_end, is_stopped)).start()
        pids.append(parent_end.recv())
    while " T " not in open(f"/proc/{pids[0]}/stat").read():
        time.sleep(0.02)
    print(*pids, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("how", ["fork", "forkserver"])
def test_a_stopped_child_ends_with_its_killed_parent_and_no_other_process_is_woken(
    how: str, tmp_path: Path
) -> None:
    """The other is of the same group, as are all runs that a script has started."""
    script = tmp_path / "stopped.py"  # which the server's processes import
    script.write_text(STOPPED)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    other = subprocess.Popen(["sleep", "600"])
    try:
        os.kill(other.pid, signal.SIGSTOP)
        with subprocess.Popen(
            [sys.executable, script, how], env=environment, stdout=subprocess.PIPE, text=True
        ) as parent:
            assert parent.stdout is not None
            children = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(children) == 2
        deadline = time.monotonic() + 120
        while (left := [pid for pid in children if lives(pid)]) and time.monotonic() < deadline:
            time.sleep(0.02)
        for pid in left:
            os.kill(pid, signal.SIGKILL)
        assert not left
        assert os.getpgid(other.pid) == os.getpgid(0)
        assert process.state_of(other.pid) == "T"
    finally:
        other.kill()
        other.wait()


def test_both_thresholds_are_set(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[int, int]] = []
    library = SimpleNamespace(mallopt=lambda *arguments: calls.append(arguments))
    monkeypatch.setattr(ctypes, "CDLL", lambda name: library)
    keep_freed_memory()
    assert sorted(calls) == [(-3, process.LARGEST), (-1, process.LARGEST)]
    assert process.LARGEST < 2**31, "an int of C"


def test_other_libraries_keep_their_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace())
    keep_freed_memory()


SHARING = """
import multiprocessing, os, time
from kdcl_dist.utils.process import end_with_parent, share_folder

def child(pipe):
    end_with_parent()
    pipe.send(os.listdir(multiprocessing.util.get_temp_dir()))
    time.sleep(60)

if __name__ == "__main__":
    context = multiprocessing.get_context("forkserver")
    share_folder()
    parent_end, child_end = context.Pipe()
    context.Process(target=child, args=(child_end,)).start()
    print(parent_end.recv(), flush=True)
    time.sleep(60)
"""


HANDED_ON = """
import multiprocessing, os, signal, sys, time
from pathlib import Path
from kdcl_dist.utils.process import end_with_parent, share_folder

def grandchild(pipe):
    end_with_parent()
    pipe.send(os.getpid())
    time.sleep(60)

def child(pipe):
    share_folder()
    multiprocessing.get_context("spawn").Process(target=grandchild, args=(pipe,)).start()
    time.sleep(60)

if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    folder = multiprocessing.util.get_temp_dir()
    parent_end, child_end = context.Pipe()
    process = context.Process(target=child, args=(child_end,))
    process.start()
    orphan = parent_end.recv()
    process.kill()
    while Path(f"/proc/{orphan}").exists() and "Z" not in Path(f"/proc/{orphan}/stat").read_text().split():
        time.sleep(0.02)
    print(Path(folder).exists(), flush=True)
"""


DROPPING = """
import multiprocessing, time
from pathlib import Path
from kdcl_dist.utils.process import end_with_parent, share_folder

def child(pipe):
    end_with_parent()
    pipe.send(multiprocessing.util.get_temp_dir())
    time.sleep(60)

if __name__ == "__main__":
    context = multiprocessing.get_context("forkserver")
    share_folder()
    parent_end, child_end = context.Pipe()
    process = context.Process(target=child, args=(child_end,))
    process.start()
    child_end.close()
    folder = parent_end.recv()
    process._popen.finalizer()  # as where the process object is deleted
    try:
        parent_end.recv()
    except EOFError:
        print(Path(folder).exists(), flush=True)
"""


def test_a_child_that_is_dropped_leaves_the_folder_to_its_parent(tmp_path: Path) -> None:
    script = tmp_path / "dropping.py"
    script.write_text(DROPPING)
    shown = subprocess.run(
        [sys.executable, str(script)], cwd=ROOT, capture_output=True, text=True, timeout=100, check=False
    )
    assert shown.stdout == "True\n", shown.stderr


def test_a_folder_that_was_handed_on_stays_for_its_owner(tmp_path: Path) -> None:
    script = tmp_path / "handed_on.py"
    script.write_text(HANDED_ON)
    shown = subprocess.run(
        [sys.executable, str(script)], cwd=ROOT, capture_output=True, text=True, timeout=100, check=False
    )
    assert shown.stdout == "True\n", shown.stderr


def test_a_child_removes_the_sockets_of_its_killed_parent(tmp_path: Path) -> None:
    script = tmp_path / "sharing.py"
    script.write_text(SHARING)
    env = os.environ | {"TMPDIR": str(tmp_path)}
    with subprocess.Popen(
        [sys.executable, str(script)], cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        assert "listener-" in parent.stdout.readline()
        parent.kill()
    deadline = time.monotonic() + 60
    while list(tmp_path.glob("pymp-*")):
        assert time.monotonic() < deadline
        time.sleep(0.02)

"""A process: its state, its end with its parent, its memory, and its identity for others."""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import multiprocessing.util
import os
import re
import shutil
import signal
import sys
import threading
import time
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

__all__ = [
    "catches",
    "end_with_parent",
    "is_dead",
    "is_over",
    "keep_freed_memory",
    "share_folder",
    "state_of",
    "this_process",
]

#: The key of the process that made the folder "tempdir", in what multiprocessing hands on.
OWNER = "kdcl_tempdir_owner"
#: Seconds in which a process is over whose files the kernel has closed.
DYING_S = 2.0
#: The parameter of Linux' prctl, from linux/prctl.h.
PR_SET_PDEATHSIG = 1
#: Parameters of mallopt, from glibc's malloc.h.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
#: Larger than any tensor of a step, in bytes; fits mallopt's int.
LARGEST = 1 << 30


def state_of(pid: int) -> str | None:
    """The state of a process as `ps` shows it, such as T of one that is stopped; None where there is none."""
    return next(iter(_stat(pid)), None)


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the state on; none where there is no such process, or no /proc."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def catches(pid: int, number: int) -> bool:
    """Whether a process of this machine handles a signal; False where there is no /proc."""
    try:
        found = re.search(r"^SigCgt:\s*(\w+)", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    except OSError:
        return False
    return found is not None and bool(int(found[1], 16) >> (number - 1) & 1)


def is_over(pid: int) -> bool:
    """Whether a process of this machine has ended; its parent may not have asked for its exit code yet."""
    return state_of(pid) in (None, "Z", "X")


def end_with_parent(*, waking: bool = False) -> None:
    """End this process, with exit code 1, when its parent dies in any way.

    An orphan would hold its memory and its device for ever. The process must be one of multiprocessing.

    Args:
        waking: whether it wakes up for that if it is stopped and another that its server has forked is not;
            Linux only.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None
    server = _server_of(parent.pid) if waking else None
    if waking:
        _wake_on_parents_death()
    handed_on = _config().get("tempdir")

    def watch() -> None:
        """End this process once its parent has ended; it has no limit, since parents may live for ever."""
        wait([parent.sentinel])
        # Nobody has time to remove the folder of sockets, this process's own or that of its parent. One that
        # was handed on from further above belongs to a process that lives.
        config = _config()
        folder = config.get("tempdir")
        if folder and (folder != handed_on or (config.get(OWNER) == parent.pid and _ends(parent.pid))):
            shutil.rmtree(folder, ignore_errors=True)
        if server is not None and _ends(parent.pid) and server == os.getppid():
            with contextlib.suppress(ProcessLookupError):
                os.kill(server, signal.SIGKILL)  # it would live as long as one that is stopped
        os._exit(1)

    threading.Thread(target=watch, name="kdcl-parent", daemon=True).start()


def _server_of(parent: int | None) -> int | None:
    """The server of a process's parent, if it forked this process and lives."""
    found = os.getppid()
    return found if _stat(found)[1:2] == [str(parent)] else None


def _wake_on_parents_death() -> None:
    """Let the kernel wake this process, if it is stopped, once the process that forked it has ended.

    Nothing else is woken: a process group may hold several runs, and one of them may be stopped for a reason.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGCONT), 0, 0, 0)


def _ends(pid: int | None) -> bool:
    """Whether a process ends within `DYING_S`; one that lives closes the sentinel of a child it drops."""
    deadline = time.monotonic() + DYING_S
    while pid is not None and not is_over(pid):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def share_folder() -> None:
    """Let the processes that this one starts know the folder of its sockets: they remove it after a kill."""
    if _config().get("tempdir") is None:
        multiprocessing.util.get_temp_dir()
        _config()[OWNER] = os.getpid()


def _config() -> dict[str, Any]:
    """What multiprocessing hands on to the processes that this one starts, and to theirs."""
    found: dict[str, Any] = multiprocessing.current_process()._config  # type: ignore[attr-defined]
    return found


def keep_freed_memory() -> None:
    """Let malloc keep the memory that a step frees for the next step.

    Every step allocates and frees the same tensors. By default glibc returns large blocks to the kernel,
    which then hands out new pages one fault at a time: on a CPU about a tenth of a step. The peak of memory
    stays the same; the process holds it between steps. Other C libraries keep their defaults.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    mallopt(M_MMAP_THRESHOLD, LARGEST)
    mallopt(M_TRIM_THRESHOLD, LARGEST)


def this_process() -> str:
    """The identity of this process for `is_dead`: the kernel's boot, the pid namespace, pid and start."""
    return " ".join((*_kernel(), str(os.getpid()), _start_of(os.getpid())))


def is_dead(identity: str) -> bool:
    """Whether the process of an identity is known to have ended: False for one of another host.

    A pid counts only within the boot and the namespace that it is of, and only with its start: it is reused.
    """
    *kernel, pid, start = identity.split(" ") if identity.count(" ") == 3 else ("", "", "", "")
    if not pid.isdecimal() or not all(kernel) or tuple(kernel) != _kernel():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):  # it lives, and belongs to another user
        return False
    return _start_of(int(pid)) not in ("", start)


def _kernel() -> tuple[str, str]:
    """The kernel's boot and this process's pid namespace; empty where there is no /proc."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return boot, str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return "", ""


def _start_of(pid: int) -> str:
    """When a process started, in ticks since the boot; "dead" for a zombie, "" where /proc does not say."""
    fields = _stat(pid)
    if not fields:
        return ""
    return "dead" if fields[0] in "ZX" else fields[19]

"""The logs of a run's processes: `logs/NAME.log` in the run folder, with what each wrote to its output.

A thread writes them. Who adds to a log never waits and never fails: what a storage does not take in time is
left out, and the log says how much.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Protocol

from kdcl_dist.errors import StorageError
from kdcl_dist.run.lines import stamped
from kdcl_dist.run.storage import Folder

__all__ = ["FILE_BYTES", "LAUNCHER", "ProcessLog", "close_all", "last_lines", "log_of"]

#: The name of the launcher's log.
LAUNCHER = "launcher"

#: Bytes of the largest file of a log. The file before is kept as NAME.log.1, and none before that.
FILE_BYTES = 5_000_000
#: Bytes that wait to be written; more are left out.
WAITING_BYTES = 1_000_000
#: Seconds from one write of a log to an object store to the next: a file there is written whole.
UPLOAD_S = 60.0
#: Seconds in which a log is completed at its end.
CLOSE_S = 10.0
#: Lines and bytes that an error shows of a log's end.
LAST_LINES, LAST_BYTES = 20, 10_000


def log_of(name: str) -> str:
    """The path, in the run folder, of the log of a worker, the coordinator or the launcher."""
    return f"logs/{name}.log"


def last_lines(run: Folder, name: str) -> list[str]:
    """The last lines of a process's log; none where it cannot be read."""
    try:
        data = run.with_limit(CLOSE_S).read(log_of(name), 2 * FILE_BYTES)
    except (OSError, ValueError, StorageError):
        return []
    return data[-LAST_BYTES:].decode(errors="replace").splitlines()[-LAST_LINES:]


def close_all(logs: Collection[ProcessLog]) -> None:
    """Write what waits in all logs at the same time, for at most `CLOSE_S` seconds in all."""
    for log in logs:
        log.close(0.0)
    deadline = time.monotonic() + CLOSE_S
    for log in logs:
        log.close(max(0.0, deadline - time.monotonic()))


class ProcessLog:
    """The log of one process of a run, and of those that replace it.

    Args:
        run: the run folder.
        name: of the worker, or "coordinator" or "launcher".
        clock: seconds since the epoch of Unix.
    """

    def __init__(self, run: Folder, name: str, clock: Callable[[], float] = time.time) -> None:
        self.name, self._clock = name, clock
        self._file: _File = _LocalFile(run, self.path) if run.local else _StoredFile(run, self.path)
        self._waiting, self._lost = bytearray(), 0
        self._changed = threading.Condition()
        self._closed = False
        self._thread: threading.Thread | None = None  # from the first bytes on

    @property
    def path(self) -> str:
        """The log's path in the run folder."""
        return log_of(self.name)

    def write(self, data: bytes) -> None:
        """Add what a process has written."""
        with self._changed:
            if self._closed or len(self._waiting) + len(data) > WAITING_BYTES:
                self._lost += len(data)
                return
            self._waiting += data
            self._changed.notify()
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name=f"kdcl-log-{self.name}", daemon=True)
                self._thread.start()

    def lines(self, lines: Iterable[str]) -> None:
        """Add whole lines."""
        if data := "".join(f"{line}\n" for line in lines).encode(errors="replace"):
            self.write(data)

    def head(self, text: str) -> None:
        """Add a heading: a line with the time, where a process starts or ends."""
        self.write(f"==== {stamped(f'{self.name}: {text}', self._clock())} ====\n".encode())

    def close(self, limit_s: float = CLOSE_S) -> None:
        """Write what waits, for at most some seconds."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join(limit_s)

    def _run(self) -> None:
        uploaded_at = -UPLOAD_S
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closed, UPLOAD_S)
                data, self._waiting, closed = self._waiting, bytearray(), self._closed
            self._append(bytes(data))
            if closed or time.monotonic() - uploaded_at >= UPLOAD_S:
                uploaded_at = time.monotonic()
                self._guarded(self._file.upload)
            if closed:
                return

    def _append(self, data: bytes) -> None:
        """Append to the file; what it does not take is counted, and the next lines begin with the count."""
        with self._changed:
            lost, self._lost = self._lost, 0
        left_out = f"==== {lost:,} bytes are left out here: the storage did not take them in time ====\n"
        whole = (left_out.encode() if lost else b"") + data
        if whole and not self._guarded(lambda: self._file.append(whole)):
            with self._changed:
                self._lost += lost + len(data)

    def _guarded(self, action: Callable[[], None]) -> bool:
        """Whether an action on the storage succeeds; its failure is no concern of the training."""
        try:
            action()
        except (OSError, StorageError):
            return False
        return True


class _File(Protocol):
    """A file that grows and is continued in a new one."""

    def append(self, data: bytes) -> None:
        """Add to the file."""

    def upload(self) -> None:
        """Write the file where it does not grow there by itself."""


class _LocalFile:
    """On a disk or NFS: the file itself grows."""

    def __init__(self, run: Folder, name: str) -> None:
        self._path = Path(f"{run.local}/{name}")

    def append(self, data: bytes) -> None:
        """Add to the file, which is opened anew: it may have been deleted."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with open(self._path, "ab", opener=_open_own) as file:
            size = file.tell()
            if size and size + len(data) > FILE_BYTES:
                self._path.replace(f"{self._path}.1")
        with open(self._path, "ab", opener=_open_own) as file:
            file.write(data)

    def upload(self) -> None:
        """Nothing is left to do."""


def _open_own(path: str, flags: int) -> int:
    """Open a file of the run folder; a link is no such file, and a FIFO could wait for ever."""
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)


class _StoredFile:
    """On an object store, where no file grows: the content is kept here, and written whole now and then."""

    def __init__(self, run: Folder, name: str) -> None:
        self._run, self._name = run.with_limit(CLOSE_S), name
        self._content: bytearray | None = None
        self._changed = False

    def append(self, data: bytes) -> None:
        """Add to the content; at first to that of the process before this one."""
        if self._content is None:
            self._content = bytearray(self._stored())
        if self._content and len(self._content) + len(data) > FILE_BYTES:
            content, self._content = self._content, bytearray()
            self._content += data
            self._changed = True
            self._run.write(f"{self._name}.1", bytes(content))
            return
        self._content += data
        self._changed = True

    def upload(self) -> None:
        """Write the content if it has changed."""
        if self._changed:
            self._run.write(self._name, bytes(self._content or b""))
            self._changed = False

    def _stored(self) -> bytes:
        try:
            return self._run.read(self._name, 2 * FILE_BYTES)
        except (FileNotFoundError, ValueError):
            return b""

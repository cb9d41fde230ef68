"""What a process writes to its standard output and error, C libraries included: passed on, and kept in a log.

The process writes to two pipes, which a thread of its launcher reads: so the last words of a process that is
killed arrive, and no disk that is full or slow holds the process up. Whole lines are passed on, with the
process's name before each, so that none can be taken for one of the run itself.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import os
import selectors
import sys
import threading
from multiprocessing import connection
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING

from kdcl_dist.launch.output_lines import Lines

if TYPE_CHECKING:
    from kdcl_dist.run.process_log import ProcessLog

__all__ = ["Ends", "Output", "redirect"]

#: The ends at which a process writes its standard output and error.
Ends = tuple[Connection, Connection]

#: File descriptors of standard output and error.
STANDARD = (1, 2)
BLOCK_BYTES = 1 << 16
#: A constant of C's setvbuf: a line is written when it ends. glibc's and musl's value.
IOLBF = 1
#: Seconds in which the last output is passed on.
CLOSE_S = 2.0


class Output:
    """What one process writes.

    Args:
        log: keeps it.

    Attributes:
        ends: for the process; `redirect` takes them there.
    """

    def __init__(self, log: ProcessLog) -> None:
        self.log = log
        pipes = [connection.Pipe(duplex=False) for _ in STANDARD]
        self._readers = [reader for reader, _ in pipes]
        self.ends: Ends = (pipes[0][1], pipes[1][1])
        self._is_over, self._over = connection.Pipe(duplex=False)
        self._thread = threading.Thread(target=self._pass_on, name=f"kdcl-output-{log.name}", daemon=True)

    @property
    def path(self) -> str:
        """The log's path in the run folder."""
        return self.log.path

    def begin(self) -> None:
        """Begin to read, once the process has its ends, or will not have them."""
        for end in self.ends:
            end.close()
        self._thread.start()

    def close(self, failure: str | None) -> None:
        """Read the last output of a process that has ended; then note its failure, if it has failed.

        What its own children write from then on, which may outlive it, is not read.
        """
        self._over.close()
        self._thread.join(CLOSE_S)  # longer only where this process's own output is held up
        if failure is not None:
            self.log.lines(Lines().take(f"{failure}\n".encode(errors="replace")))

    def _pass_on(self) -> None:
        """Read until no process holds an end, or until the process is over and all is read."""
        is_over, lines = False, {target: Lines() for target in STANDARD}
        with selectors.DefaultSelector() as selector:
            for reader, target in zip(self._readers, STANDARD, strict=True):
                selector.register(reader, selectors.EVENT_READ, target)
            selector.register(self._is_over, selectors.EVENT_READ, None)
            while len(selector.get_map()) > (0 if is_over else 1):
                if not (ready := selector.select(0 if is_over else None)):
                    break
                for key, _ in ready:
                    if key.data is not None and (data := os.read(key.fd, BLOCK_BYTES)):
                        self._put(key.data, lines[key.data].take(data))
                    else:
                        is_over |= key.data is None
                        selector.unregister(key.fileobj)
        for target in STANDARD:
            self._put(target, lines[target].end())
        for reader in (*self._readers, self._is_over):
            reader.close()

    def _put(self, target: int, lines: list[str]) -> None:
        if lines:
            self.log.lines(lines)
            _write_all(target, "".join(f"{self.log.name} | {line}\n" for line in lines).encode())


def _write_all(target: int, data: bytes) -> None:
    with contextlib.suppress(
        OSError
    ):  # this process's own output is closed, which is no matter of the other's
        while data:
            data = data[os.write(target, data) :]


def redirect(ends: Ends) -> None:
    """Let this process write its standard output and error to the ends of an `Output`, line by line."""
    for end, target, name in zip(ends, STANDARD, ("stdout", "stderr"), strict=True):
        os.dup2(end.fileno(), target)
        end.close()
        if isinstance(stream := getattr(sys, name), io.TextIOWrapper):
            stream.reconfigure(line_buffering=True)
    with contextlib.suppress(AttributeError, OSError, ValueError):  # C libraries without such names
        libc = ctypes.CDLL(None)
        libc.setvbuf(ctypes.c_void_p.in_dll(libc, "stdout"), None, IOLBF, 0)

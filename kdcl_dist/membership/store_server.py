"""The server of a run's store: a dictionary for those who have the token of the run.

A request is a line of JSON, [operation, arguments...], and so is its answer. Values are bytes, as text in
Latin-1; the states of students follow as bytes (`kdcl_dist.membership.shelf`). What a peer sends before its
handshake has succeeded is not interpreted.
"""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

from kdcl_dist.membership.handshake import ForeignPeer, admit
from kdcl_dist.membership.shelf import OPERATIONS, Shelf

__all__ = ["HANDSHAKE_S", "PENDING", "StoreServer"]

#: Seconds for a handshake, and connections that may be in theirs: the next one ends the oldest.
HANDSHAKE_S, PENDING = 10.0, 64
#: Seconds until the next attempt after the process had no file descriptor or thread left for a connection.
PAUSE_S = 0.02
#: Seconds for a thread to end.
END_S = 1.0


class StoreServer:
    """Serves a dictionary, with one thread for each connection.

    Args:
        listener: a socket that listens.
        token: the secret of those who may use the store.

    Attributes:
        shelf: of the states that students send.
    """

    def __init__(self, listener: socket.socket, token: str) -> None:
        self._token, self.shelf = token, Shelf()
        self._values, self._awaited = dict[str, str](), dict[str, threading.Event]()
        self._using = threading.RLock()
        self._pending, self._threads = deque[socket.socket](), dict[socket.socket, threading.Thread]()
        self._lock, self._closed = threading.RLock(), False
        self._start(self._accept, listener)

    def close(self) -> None:
        """End all connections, and listen no more."""
        with self._lock:
            self._closed, threads = True, dict(self._threads)
        for link in threads:
            _end(link)
        for thread in set(threads.values()) - {threading.current_thread()}:
            thread.join(END_S)

    def _start(self, work: Callable[[socket.socket], None], link: socket.socket) -> None:
        """Work with a socket in a thread, and close the socket."""

        def run() -> None:
            """What the thread does."""
            with link, contextlib.suppress(OSError, ForeignPeer):
                work(link)
            with self._lock:
                del self._threads[link]

        thread = threading.Thread(target=run, name="store-server", daemon=True)
        with self._lock:
            thread.start()
            self._threads[link] = thread

    def _accept(self, listener: socket.socket) -> None:
        while not self._closed:
            try:
                link, _ = listener.accept()
                with self._lock:
                    self._start(self._serve, link)
                    self._pending.append(link)
            except (OSError, RuntimeError):  # closed, or no file descriptor or thread is left
                time.sleep(PAUSE_S)
            with self._lock:
                while len(self._pending) > (0 if self._closed else PENDING):
                    _end(self._pending.popleft())

    def _serve(self, link: socket.socket) -> None:
        """Admit a peer that has the token, and answer its requests to the end of its connection."""
        try:
            link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            admit(link, self._token, HANDSHAKE_S)
            link.settimeout(None)
        finally:
            with self._lock, contextlib.suppress(ValueError):  # ended as the oldest
                self._pending.remove(link)
        self._answer_all(link)

    def _answer_all(self, link: socket.socket) -> None:
        with link.makefile("rwb") as stream:
            for line in stream:
                operation, *arguments = json.loads(line)
                if operation in OPERATIONS:
                    getattr(self.shelf, operation)(stream, *arguments)
                else:
                    answer = getattr(self, f"_do_{operation}")(*arguments)
                    stream.write(json.dumps(answer).encode() + b"\n")
                stream.flush()

    # -- the operations ------------------------------------------------------------------------------

    def _do_set(self, key: str, value: str) -> None:
        with self._using:
            self._values[key] = value
            if (awaited := self._awaited.pop(key, None)) is not None:
                awaited.set()

    def _do_add(self, key: str, value: int) -> int:
        with self._using:
            total = int(self._values.get(key, "0")) + value
            self._do_set(key, str(total))
            return total

    def _do_compare_set(self, key: str, expected: str, desired: str) -> str:
        with self._using:
            if self._values.get(key, "") == expected:
                self._do_set(key, desired)
            return self._values.get(key, expected)

    def _do_check(self, keys: Sequence[str], wait_s: float) -> bool:
        """Whether all keys exist, at the latest after `wait_s` seconds."""
        deadline = time.monotonic() + wait_s
        while True:
            with self._using:
                missing = next((key for key in keys if key not in self._values), None)
                left_s = deadline - time.monotonic()
                if missing is None or left_s <= 0:
                    return missing is None
                awaited = self._awaited.setdefault(missing, threading.Event())
            awaited.wait(left_s)

    def _do_lookup(self, keys: Sequence[str]) -> list[str | None]:
        with self._using:
            return [self._values.get(key) for key in keys]


def _end(link: socket.socket) -> None:
    """End a connection, so that the thread that reads it notices."""
    with contextlib.suppress(OSError):  # it has ended
        link.shutdown(socket.SHUT_RDWR)

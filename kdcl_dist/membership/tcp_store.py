"""The store of a run: the coordinator hosts it, and those who have the token of the run connect to it.

torch's own TCPStore admits whoever connects. This one is a store of torch as well, through which torch forms
its process groups.
"""

from __future__ import annotations

import json
import socket
import threading
import time
import weakref
from collections.abc import Sequence
from contextlib import closing, suppress
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from kdcl_dist.errors import CoordinatorLost, one_line
from kdcl_dist.membership.endpoint import Endpoint
from kdcl_dist.membership.handshake import ForeignPeer, enter, sign
from kdcl_dist.membership.shelf import Shelf
from kdcl_dist.membership.store_server import StoreServer
from kdcl_dist.run.checkpoint import part_of

__all__ = [
    "RunStore",
    "c10d",
    "connect_store",
    "fetch_state",
    "host_store",
    "put_state",
    "scoped",
    "shelf_of",
]

#: torch.distributed without its annotations, which lack the stores and the process groups.
c10d: Any = dist

#: Seconds for the coordinator to reach its own store, and between two attempts to reach another's.
OWN_S, RETRY_S = 30.0, 0.05
#: Seconds that one request waits for a key; between two, other threads use the connection.
WAIT_S = 0.1


def host_store(host: str) -> tuple[RunStore, Endpoint]:
    """Open the run's store on a free port of an address, for the coordinator; it closes with the result."""
    listener = socket.create_server(
        (host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=1024
    )
    endpoint = Endpoint(host, listener.getsockname()[1])
    server = StoreServer(listener, endpoint.token)
    store = connect_store(endpoint, OWN_S)
    store.connection.shelf = server.shelf
    weakref.finalize(store.connection, server.close)
    return store, endpoint


def shelf_of(store: Any) -> Shelf:
    """The shelf of a store that this process hosts, or of a part of it."""
    shelf: Shelf | None = store.connection.shelf
    assert shelf is not None
    return shelf


def put_state(store: RunStore, checkpoint: str, name: str, data: bytes) -> None:
    """Send a student's state to the shelf, over a connection of its own: heartbeats do not wait for it.

    Raises:
        OSError, ForeignPeer, DistNetworkError: the coordinator cannot be reached.
    """
    part = part_of(data)
    with closing(store.connection.another()) as connection:
        connection.ask("put", checkpoint, name, part.sha256, part.bytes, sent=data)


def fetch_state(store: RunStore, checkpoint: str, name: str) -> bytes:
    """A student's state on the shelf; empty where it has none. Raises as `put_state`."""
    with closing(store.connection.another()) as connection:
        return connection.receive(connection.ask("fetch", checkpoint, name))


def connect_store(endpoint: Endpoint, limit_s: float) -> RunStore:
    """Connect to the coordinator's store.

    Raises:
        CoordinatorLost: nothing listens at the endpoint, nothing answers within `limit_s` seconds, or what
            answers does not have the endpoint's token.
    """
    where, deadline = (
        f"the coordinator's store at {endpoint.host}:{endpoint.port}",
        time.monotonic() + limit_s,
    )
    while True:
        try:
            return RunStore(_Connection(endpoint, limit_s))
        except ForeignPeer as error:
            raise CoordinatorLost(
                f"{where} and this process do not have the same token: another program has taken the "
                "port, or the launcher of this process is not that of the run",
                phase="start",
            ) from error
        except OSError as error:
            # Ended in the handshake, where strangers take all places: another attempt may succeed.
            if not isinstance(error, ConnectionResetError | BrokenPipeError) or time.monotonic() > deadline:
                raise CoordinatorLost(
                    f"{where} cannot be reached within {limit_s:g} s (limits.startup_s): {one_line(error)}",
                    phase="start",
                ) from error
        time.sleep(RETRY_S)


def scoped(store: Any, name: str) -> RunStore:
    """A part of a `RunStore` under a prefix, such as that of one run or of one generation."""
    return RunStore(store.connection, f"{store.prefix}{name}/")


class _Connection:
    """A member's connection to the store, which its threads share; errors as of the class below."""

    def __init__(self, endpoint: Endpoint, limit_s: float) -> None:
        self.endpoint, self.token, self.limit_s = endpoint, endpoint.token, limit_s
        self.shelf: Shelf | None = None  # of the server, in its own process
        self.link = socket.create_connection((endpoint.host, endpoint.port), timeout=limit_s)
        try:
            self.link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            enter(self.link, self.token, limit_s)
        except BaseException:
            self.link.close()
            raise
        self.link.settimeout(limit_s)
        self._stream, self._lock = self.link.makefile("rwb"), threading.Lock()

    def another(self) -> _Connection:
        """Another connection to the same server."""
        return _Connection(self.endpoint, self.limit_s)

    def close(self) -> None:
        """End the connection."""
        with suppress(OSError):  # what is not sent yet
            self._stream.close()
        self.link.close()

    def receive(self, size: int) -> bytes:
        """Bytes that follow an answer; fewer if the server ends."""
        return self._stream.read(size)

    def ask(self, operation: str, *arguments: Any, sent: bytes = b"") -> Any:
        """The server's answer to a request, which is followed by some bytes."""
        request = json.dumps([operation, *arguments]).encode() + b"\n"
        try:
            with self._lock:
                self._stream.write(request)
                self._stream.write(sent)
                self._stream.flush()
                answer = self._stream.readline()
        except (OSError, ValueError) as error:
            raise c10d.DistNetworkError(f"the store does not answer: {one_line(error)}") from None
        if not answer.endswith(b"\n"):
            raise c10d.DistNetworkError("the store closed the connection")
        return json.loads(answer)


class RunStore(c10d.Store):  # type: ignore[misc]
    """A part of the store, as torch and the package use it.

    Whoever gives it to torch keeps a reference to it for as long as torch may use it.

    Raises:
        DistNetworkError: of every operation, when the store cannot be reached.

    Args:
        connection: to the store.
        prefix: of all keys.
    """

    def __init__(self, connection: _Connection, prefix: str = "") -> None:
        super().__init__()
        self.connection, self.prefix = connection, prefix

    def clone(self) -> RunStore:
        """Itself: all threads of a process share one connection. torch asks for this beside NCCL."""
        return self

    def sign(self, text: str) -> bytes:
        """An HMAC of a text under the run's token, 32 bytes; another one in each part of the store."""
        return sign(self.connection.token, self.prefix.encode(), text.encode())

    def set(self, key: str, value: str | bytes, /) -> None:
        """Write a value."""
        self.connection.ask("set", self.prefix + key, _text(value))

    def add(self, key: str, value: int, /) -> int:
        """Add to a counter that begins at 0; return its new value."""
        return int(self.connection.ask("add", self.prefix + key, value))

    def compare_set(self, key: str, expected: str | bytes, desired: str | bytes, /) -> bytes:
        """Write `desired` if the key has the value `expected`, "" for none; return its value then."""
        answer = self.connection.ask("compare_set", self.prefix + key, _text(expected), _text(desired))
        return str(answer).encode("latin-1")

    def lookup(self, keys: Sequence[str], /) -> list[bytes | None]:
        """The values of keys, None for absent ones."""
        found = self.connection.ask("lookup", [self.prefix + key for key in keys])
        return [None if value is None else value.encode("latin-1") for value in found]

    def check(self, keys: list[str], /) -> bool:
        """Whether all keys exist."""
        return self.exist(keys, 0.0)

    def wait(self, keys: list[str], limit: timedelta | None = None, /) -> None:
        """Wait until all keys exist; raises DistStoreError after the limit, by default the connection's."""
        limit_s = self.connection.limit_s if limit is None else limit.total_seconds()
        deadline = time.monotonic() + limit_s
        while not self.exist(keys, WAIT_S):
            if time.monotonic() > deadline:
                raise c10d.DistStoreError(f"no value of {', '.join(keys)} within {limit_s:g} s")

    def get(self, key: str, /) -> bytes:
        """The value of a key, once it exists; raises as `wait`."""
        if (found := self.lookup([key])[0]) is None:
            self.wait([key])
            return self.get(key)
        return found

    def exist(self, keys: Sequence[str], wait_s: float, /) -> bool:
        """Whether all keys exist, at the latest after `wait_s` seconds; other threads wait meanwhile."""
        return bool(self.connection.ask("check", [self.prefix + key for key in keys], wait_s))


def _text(value: str | bytes) -> str:
    return (value.encode() if isinstance(value, str) else value).decode("latin-1")

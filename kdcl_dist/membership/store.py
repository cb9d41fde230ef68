"""The key-value store that the coordinator hosts, as the others use it."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from datetime import timedelta
from typing import Any, Protocol

import torch.distributed as dist

from kdcl_dist.errors import CoordinatorLost, one_line
from kdcl_dist.membership.endpoint import Endpoint

__all__ = ["Store", "connect_store", "host_store", "scoped", "within"]


class Store(Protocol):
    """The part of torch.distributed's stores that is used."""

    def set(self, key: str, value: str, /) -> None:
        """Write a value."""

    def get(self, key: str, /) -> bytes:
        """Read a value that is known to exist."""

    def add(self, key: str, value: int, /) -> int:
        """Add to a counter that begins at 0; return what it is then."""

    def check(self, keys: list[str], /) -> bool:
        """Whether all keys exist."""

    def compare_set(self, key: str, expected: str, desired: str, /) -> bytes:
        """Write `desired` if the key is absent and `expected` is empty; return what stands there then."""


def within(limit_s: float, operation: Callable[[], Any]) -> Any:
    """The result of an operation that may never end, as those of torch's store where a host is cut off.

    Raises:
        TimeoutError: there is none within `limit_s` seconds; the operation is left alone in its thread.
    """
    future = Future[Any]()

    def work() -> None:
        try:
            future.set_result(operation())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=work, name="store-operation", daemon=True).start()
    try:
        return future.result(limit_s)
    except FutureTimeout:
        raise TimeoutError(f"no answer within {limit_s:.2g} s") from None


#: torch's annotations leave out the stores and the gloo group.
c10d: Any = dist


def host_store(host: str) -> tuple[Store, Endpoint]:
    """Open the run's store on a free port of one address; for the coordinator."""
    listener = socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    port = listener.getsockname()[1]
    store: Store = c10d.TCPStore(
        host,
        port,
        is_master=True,
        wait_for_workers=False,
        timeout=timedelta(seconds=30),
        master_listen_fd=listener.detach(),
    )
    return store, Endpoint(host, port)


def connect_store(endpoint: Endpoint, limit_s: float) -> Store:
    """Reach the coordinator's store.

    Raises:
        CoordinatorLost: nothing listens there any more, or nobody answers within `limit_s` seconds.
    """
    host, port = endpoint.host, endpoint.port
    try:
        # The store's client tries a refused connection until its limit; here it means that nobody is there.
        socket.create_connection((host, port), timeout=limit_s).close()
        store: Store = c10d.TCPStore(
            host, port, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=limit_s)
        )
        return store
    except (OSError, RuntimeError) as error:
        raise CoordinatorLost(
            f"the coordinator's store at {host}:{port} cannot be reached within {limit_s:g} s "
            f"(limits.startup_s): {one_line(error)}",
            phase="start",
        ) from error


def scoped(store: Store, name: str) -> Store:
    """A part of the store, such as that of one run, or of one generation of its group."""
    part: Store = c10d.PrefixStore(name, store)
    return part

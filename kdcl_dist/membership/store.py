"""The key-value store that the coordinator hosts, as the others use it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from typing import Any, Protocol

__all__ = ["Store", "call_with_timeout"]


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


def call_with_timeout(limit_s: float, operation: Callable[[], Any]) -> Any:
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

"""Access to the key-value store that the coordinator hosts."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from typing import Any, Protocol

from kdcl_dist.errors import KdclError

__all__ = ["ANSWER_S", "POLL_S", "Store", "StoreClient", "call_with_timeout"]

#: Seconds in which the coordinator's store answers, however busy it is.
ANSWER_S = 10.0
#: Seconds between two looks at what the store does not tell; what it tells wakes who waits for it.
POLL_S = 0.02


class Store(Protocol):
    """The methods of the store that the package uses."""

    def set(self, key: str, value: str, /) -> None:
        """Write a value."""

    def get(self, key: str, /) -> bytes:
        """Read the value of a key that exists."""

    def add(self, key: str, value: int, /) -> int:
        """Add to a counter that begins at 0; return its new value."""

    def exist(self, keys: Sequence[str], wait_s: float, /) -> bool:
        """Whether all keys exist, at the latest after `wait_s` seconds."""

    def lookup(self, keys: Sequence[str], /) -> list[bytes | None]:
        """The values of keys, None for absent ones."""

    def compare_set(self, key: str, expected: str, desired: str, /) -> bytes:
        """Write `desired` if the key is absent and `expected` is empty; return the value of the key then."""


class StoreClient:
    """JSON values in a store, where every operation has a limit.

    Args:
        store: of the run.
        lost: makes the error to raise of an exception of the store, or of its silence. The store answers at
            once or never, since its process does nothing else for it.
    """

    def __init__(self, store: Store, lost: Callable[[Exception], KdclError]) -> None:
        self.store, self._lost = store, lost

    def has(self, *keys: str, wait_s: float = 0.0) -> bool:
        """Whether all keys exist, at the latest after `wait_s` seconds, for which other threads wait too."""
        return bool(self.call(lambda: self.store.exist(keys, wait_s)))

    def read(self, key: str) -> Any:
        """The value of a key that exists."""
        return json.loads(self.call(lambda: self.store.get(key)))

    def write(self, key: str, value: Any, answer_s: float = ANSWER_S) -> None:
        """Write a value."""
        text = json.dumps(value)
        self.call(lambda: self.store.set(key, text), answer_s)

    def write_first(self, key: str, value: Any) -> Any:
        """Write a value unless the key exists; returns the value of the key then."""
        text = json.dumps(value)
        return json.loads(self.call(lambda: self.store.compare_set(key, "", text)))

    def count(self, key: str, more: int = 0) -> int:
        """Add to a counter; returns its new value."""
        return int(self.call(lambda: self.store.add(key, more)))

    def call(self, operation: Callable[[], Any], answer_s: float = ANSWER_S) -> Any:
        """The result of an operation that uses the store."""
        try:
            return call_with_timeout(answer_s, operation)
        except Exception as error:
            raise self._lost(error) from error


def call_with_timeout(limit_s: float, operation: Callable[[], Any]) -> Any:
    """The result of an operation that may never end, such as those of a store whose host is cut off.

    Raises:
        TimeoutError: there is no result within `limit_s` seconds; the operation stays alone in its thread.
    """
    future = Future[Any]()

    def work() -> None:
        """Run the operation; its thread may outlive the wait."""
        try:
            future.set_result(operation())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=work, name="store-operation", daemon=True).start()
    try:
        return future.result(limit_s)
    except FutureTimeout:
        raise TimeoutError(f"no answer within {limit_s:.2g} s") from None

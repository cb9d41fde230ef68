"""A store in memory with the methods of `kdcl_dist.membership.store.Store`."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence


class MemoryStore:
    """What the store of a run does for a cohort, within one process."""

    def __init__(self) -> None:
        self.values: dict[str, bytes] = {}
        self._lock = threading.Lock()

    def set(self, key: str, value: str, /) -> None:
        self.values[key] = value.encode()

    def get(self, key: str, /) -> bytes:
        return self.values[key]

    def add(self, key: str, value: int, /) -> int:
        with self._lock:
            total = int(self.values.get(key, b"0")) + value
            self.values[key] = str(total).encode()
            return total

    def exist(self, keys: Sequence[str], wait_s: float, /) -> bool:
        deadline = time.monotonic() + wait_s
        while not (found := all(key in self.values for key in keys)) and time.monotonic() < deadline:
            time.sleep(0.001)
        return found

    def lookup(self, keys: Sequence[str]) -> list[bytes | None]:
        return [self.values.get(key) for key in keys]

    def compare_set(self, key: str, expected: str, desired: str, /) -> bytes:
        with self._lock:
            if self.values.get(key, b"").decode() == expected:
                self.values[key] = desired.encode()
            return self.values[key]


class LostStore(MemoryStore):
    """A store whose host is lost: every operation fails."""

    def set(self, key: str, value: str, /) -> None:
        raise ConnectionResetError("connection reset by peer")

    def get(self, key: str, /) -> bytes:
        raise ConnectionResetError("connection reset by peer")

    def exist(self, keys: Sequence[str], wait_s: float, /) -> bool:
        raise ConnectionResetError("connection reset by peer")

    def lookup(self, keys: Sequence[str]) -> list[bytes | None]:
        raise ConnectionResetError("connection reset by peer")

    def compare_set(self, key: str, expected: str, desired: str, /) -> bytes:
        raise ConnectionResetError("connection reset by peer")

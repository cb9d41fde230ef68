"""Access to the store: JSON values, limits, and the errors of a store that is lost."""

from __future__ import annotations

import threading
import time

import pytest
from memory_store import LostStore, MemoryStore

from kdcl_dist.errors import CoordinatorLost, one_line
from kdcl_dist.membership.store import Store, StoreClient, call_with_timeout


def client_of(store: Store) -> StoreClient:
    return StoreClient(store, lambda error: CoordinatorLost(one_line(error)))


def test_values_are_json() -> None:
    client = client_of(MemoryStore())
    for value in ({"a": [1, None, "x"]}, True, False, "late", 3):
        client.write("key", value)
        assert client.read("key") == value
    assert client.has("key")
    assert not client.has("key", "other")


def test_only_the_first_value_is_written() -> None:
    client = client_of(MemoryStore())
    assert client.write_first("failure", {"by": 1}) == {"by": 1}
    assert client.write_first("failure", {"by": 2}) == {"by": 1}


def test_a_counter_begins_at_zero() -> None:
    client = client_of(MemoryStore())
    assert [client.count("n"), client.count("n", 1), client.count("n", 1), client.count("n")] == [0, 1, 2, 2]


def test_a_lost_store_is_an_error_of_the_callers_kind() -> None:
    client = client_of(LostStore())
    for operation in (
        lambda: client.has("key"),
        lambda: client.read("key"),
        lambda: client.write("key", 1),
        lambda: client.write_first("key", 1),
    ):
        with pytest.raises(CoordinatorLost, match="ConnectionResetError: connection reset by peer"):
            operation()


def test_a_silent_store_is_lost_after_the_limit() -> None:
    class SilentStore(MemoryStore):
        def set(self, key: str, value: str, /) -> None:
            released.wait(100)

    released, began = threading.Event(), time.monotonic()
    try:
        with pytest.raises(CoordinatorLost, match=r"no answer within 0\.1 s"):
            client_of(SilentStore()).write("key", 1, answer_s=0.1)
        assert time.monotonic() - began < 60
    finally:
        released.set()


def test_a_call_returns_or_raises_what_its_operation_does() -> None:
    assert call_with_timeout(60, lambda: 3) == 3
    with pytest.raises(ZeroDivisionError):
        call_with_timeout(60, lambda: 1 / 0)

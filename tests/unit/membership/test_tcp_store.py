"""The store over real connections: its operations, and who is admitted."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import threading
import time
from contextlib import ExitStack
from dataclasses import replace
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdcl_dist.errors import CoordinatorLost
from kdcl_dist.membership import store_server
from kdcl_dist.membership.endpoint import Endpoint
from kdcl_dist.membership.tcp_store import RunStore, c10d, connect_store, host_store, scoped

HOST = "127.0.0.1"
Hosted = tuple[RunStore, Endpoint]


@pytest.fixture(scope="module")
def hosted() -> Hosted:
    return host_store(HOST)


def test_members_share_its_values(hosted: Hosted) -> None:
    own, other = scoped(hosted[0], "shared"), scoped(connect_store(hosted[1], 10), "shared")
    own.set("key", "grün\n")
    assert other.get("key") == "grün\n".encode()
    assert other.lookup(["key", "absent"]) == ["grün\n".encode(), None]
    assert (other.check(["key"]), other.check(["key", "absent"])) == (True, False)
    assert [own.add("n", 0), other.add("n", 2), own.add("n", 1)] == [0, 2, 3]
    assert [store.compare_set("first", "", name) for store, name in ((own, "a"), (other, "b"))] == [
        b"a",
        b"a",
    ]
    assert not scoped(own, "part").check(["key"])


def test_torch_uses_it_as_a_store_of_its_own(hosted: Hosted) -> None:
    store = scoped(hosted[0], "torch")
    part = c10d.PrefixStore("part", store).clone()
    part.set("key", "x")
    assert (part.get("key"), store.get("part/key"), part.add("n", 2)) == (b"x", b"x", 2)
    part.wait(["key"], timedelta(seconds=5))
    assert part.compare_set("key", "x", "y") == b"y"
    assert (part.check(["key"]), part.check(["other"])) == (True, False)


@given(st.binary(max_size=300))
def test_values_are_any_bytes(hosted: Hosted, value: bytes) -> None:
    hosted[0].set("bytes", value)
    assert hosted[0].get("bytes") == value


def test_a_wait_ends_with_the_key_or_with_its_limit(hosted: Hosted) -> None:
    store = scoped(hosted[0], "waits")
    timer = threading.Timer(0.3, lambda: store.set("late", "x"))  # over the same connection
    timer.start()
    store.wait(["late"], timedelta(seconds=60))
    assert store.get("late") == b"x"
    with pytest.raises(RuntimeError, match=r"no value of never within 0\.2 s"):
        store.wait(["never"], timedelta(seconds=0.2))
    timer.join()


def test_who_has_another_token_gets_one_clear_error(hosted: Hosted) -> None:
    with pytest.raises(CoordinatorLost, match="do not have the same token") as caught:
        connect_store(replace(hosted[1], token="0" * 64), 10)
    assert "\n" not in str(caught.value)
    assert hosted[1].token not in repr(hosted[1]) + str(caught.value)


#: What programs send that do not know the handshake: torch's own client, a browser, a member's requests.
FOREIGN = [
    b"",
    os.urandom(500),
    struct.pack("<BI", 0, 0x3C85F7CE) + bytes([17]) * 100,
    b"GET / HTTP/1.1\r\n\r\n" * 10,
    b'["lookup", ["secret"]]\n["set", "secret", "stolen"]\n' * 4,
]


@pytest.mark.parametrize("sent", FOREIGN, ids=["nothing", "random", "torch", "http", "request"])
def test_who_has_no_token_neither_reads_nor_writes(hosted: Hosted, sent: bytes) -> None:
    hosted[0].set("secret", "kept")
    with socket.create_connection((hosted[1].host, hosted[1].port), timeout=20) as link:
        received = link.recv(32)
        with contextlib.suppress(OSError):  # cut off with bytes that are not read
            link.sendall(sent)
            link.shutdown(socket.SHUT_WR)
            while more := link.recv(1000):
                received += more
    assert received[32:] in (b"", bytes(32))
    assert connect_store(hosted[1], 10).get("secret") == b"kept"


def test_strangers_that_hold_connections_do_not_keep_members_out(
    hosted: Hosted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_server, "HANDSHAKE_S", 1000.0)
    where = hosted[1].host, hosted[1].port
    with ExitStack() as held:
        links = [
            held.enter_context(socket.create_connection(where, timeout=60))
            for _ in range(3 * store_server.PENDING)
        ]
        store = connect_store(hosted[1], 60)
        store.set("through", "x")
        assert hosted[0].get("through") == b"x"
        assert len(links[0].recv(100)) == 32
        assert links[0].recv(100) == b"", "the oldest is not ended"


def test_a_member_does_not_believe_a_store_without_the_token() -> None:
    """Another program may listen on the port of a coordinator that has died."""
    with socket.create_server((HOST, 0)) as listener:

        def pretend() -> None:
            link, _ = listener.accept()
            with link:
                link.sendall(bytes(32))
                link.recv(64)
                link.sendall(os.urandom(32))

        thread = threading.Thread(target=pretend)
        thread.start()
        with pytest.raises(CoordinatorLost, match="do not have the same token"):
            connect_store(Endpoint(HOST, listener.getsockname()[1]), 10)
        thread.join()


def test_a_store_that_is_silent_or_gone_is_lost_within_the_limit() -> None:
    with socket.create_server((HOST, 0)) as listener:
        endpoint = Endpoint(HOST, listener.getsockname()[1])
        with pytest.raises(CoordinatorLost, match=r"within 0\.2 s"):
            connect_store(endpoint, 0.2)
    began = time.monotonic()
    with pytest.raises(CoordinatorLost, match="refused"):
        connect_store(endpoint, 100)
    assert time.monotonic() - began < 50


def test_a_store_that_ends_is_an_error_of_the_kind_that_broken_groups_raise() -> None:
    own, endpoint = host_store(HOST)
    other, deadline = connect_store(endpoint, 10), time.monotonic() + 60
    del own

    def use() -> None:
        while time.monotonic() < deadline:
            other.set("key", "x")

    with pytest.raises(RuntimeError, match="the store"):
        use()

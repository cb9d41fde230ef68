"""States on the coordinator's shelf: sent and fetched over real connections."""

from __future__ import annotations

import json
import os
import threading
import time

import pytest

from kdcl_dist.membership.endpoint import Endpoint
from kdcl_dist.membership.tcp_store import (
    RunStore,
    connect_store,
    fetch_state,
    host_store,
    put_state,
    scoped,
    shelf_of,
)
from kdcl_dist.run.checkpoint import part_of

HOST = "127.0.0.1"
STATE = os.urandom(3_000_000)


@pytest.fixture(scope="module")
def hosted() -> tuple[RunStore, Endpoint]:
    return host_store(HOST)


def test_a_state_is_fetched_as_it_was_sent(hosted: tuple[RunStore, Endpoint]) -> None:
    shelf, member = shelf_of(scoped(hosted[0], "run")), scoped(connect_store(hosted[1], 10), "run")
    shelf.retain("0/4")
    put_state(member, "0/4", "a", STATE)
    assert shelf.parts("0/4") == {"a": part_of(STATE)}
    assert fetch_state(member, "0/4", "a") == STATE
    assert fetch_state(member, "0/4", "b") == fetch_state(member, "0/6", "a") == b""
    member.set("key", "x")
    assert member.get("key") == b"x", "the member's own connection is as before"


def test_what_is_not_asked_for_is_not_kept(hosted: tuple[RunStore, Endpoint]) -> None:
    shelf, member = shelf_of(hosted[0]), connect_store(hosted[1], 10)
    shelf.retain("0/4", "0/8")
    for checkpoint in ("0/4", "0/8", "1/8"):
        put_state(member, checkpoint, "a", b"state")
    assert [len(shelf.parts(each)) for each in ("0/4", "0/8", "1/8")] == [1, 1, 0]
    shelf.retain("0/8", "0/12")
    assert [len(shelf.parts(each)) for each in ("0/4", "0/8", "0/12")] == [0, 1, 0]


def test_a_state_whose_student_dies_while_it_is_sent_is_not_kept(hosted: tuple[RunStore, Endpoint]) -> None:
    shelf, before = shelf_of(hosted[0]), threading.active_count()
    shelf.retain("2/4")
    connection = connect_store(hosted[1], 10).connection.another()
    connection.link.sendall(json.dumps(["put", "2/4", "a", "", len(STATE)]).encode() + b"\n" + STATE[:1000])
    connection.close()
    deadline = time.monotonic() + 120
    while threading.active_count() > before + 1:  # that of the member's own connection stays
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert shelf.parts("2/4") == {}

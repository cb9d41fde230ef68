"""The gloo group of members: real groups whose ranks are threads."""

from __future__ import annotations

import multiprocessing
import socket
import threading
from collections.abc import Sequence
from datetime import timedelta
from multiprocessing.connection import Connection
from typing import Any

import groups
import pytest
import torch
from together import at_once

from kdcl_dist.errors import ExchangeBroke
from kdcl_dist.exchange.gloo import find_links, form_gloo
from kdcl_dist.membership.endpoint import Endpoint
from kdcl_dist.membership.tcp_store import RunStore, connect_store, host_store, scoped
from kdcl_dist.utils.listeners import end_links, listeners

HOST, LIMIT = "127.0.0.1", timedelta(seconds=60)


class Stranger(RunStore):
    """As of a process that has come upon the group's addresses, but has not the token."""

    def sign(self, text: str) -> bytes:
        return bytes(32)


def form(stores: Sequence[RunStore]) -> list[Any]:
    """The group, or the error, of each rank."""
    found: list[Any] = [None] * len(stores)

    def work(rank: int) -> None:
        try:
            found[rank] = form_gloo(stores[rank], rank, len(stores), host=HOST, limit=LIMIT)
        except RuntimeError as error:
            found[rank] = error

    at_once(work, len(stores))
    return found


def test_members_form_a_group_that_takes_no_newcomers() -> None:
    before = listeners()
    store, endpoint = host_store(HOST)
    served = listeners() - before
    stores = [store, *(connect_store(endpoint, 20) for _ in range(2))]
    groups = form([scoped(each, "group") for each in stores])
    opened = listeners() - before - served
    assert len(opened) == len(groups)
    for found in opened:
        with socket.socket() as newcomer:
            newcomer.settimeout(0.3)
            with pytest.raises(TimeoutError):
                newcomer.connect(found.own)
    received = torch.zeros(2)
    for work in (groups[2].send([torch.ones(2)], 0, 1), groups[0].recv([received], 2, 1)):
        work.wait(LIMIT)
    assert received.sum() == 2


def test_a_connection_without_the_token_breaks_the_group() -> None:
    store, endpoint = host_store(HOST)
    other = connect_store(endpoint, 20)
    member, stranger = form([scoped(store, "group"), Stranger(other.connection, "group/")])
    for found, rank in ((member, 1), (stranger, 0)):
        assert isinstance(found, RuntimeError)
        assert f"the connection to rank {rank} of the gloo group is not of a member of the run" in str(found)


def test_the_run_takes_it_for_a_broken_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    """No process is lost, so none is replaced: the recovery policy makes the group again."""
    strangers = []

    def connect(endpoint: Endpoint, limit_s: float) -> RunStore:
        store = connect_store(endpoint, limit_s)
        if not strangers:
            strangers.append(store)
            store.connection.token = "another"
        return store

    monkeypatch.setattr(groups, "connect_store", connect)
    found = groups.run_group(lambda exchange: groups.exchange_step(exchange, 0))
    assert len(found) == 4
    for error in found:
        assert isinstance(error, ExchangeBroke)
        assert "every process lives" in str(error)


def peer(endpoint: Endpoint, ready: Connection) -> None:
    """The other member of a group: it waits for a message that never comes."""
    group = form_gloo(scoped(connect_store(endpoint, 60), "group"), 1, 2, host=HOST, limit=LIMIT)
    work = group.recv([torch.zeros(2)], 0, 1)
    ready.send("waits")
    with pytest.raises(RuntimeError, match="closed"):
        work.wait(LIMIT)
    ready.send("has noticed")


def test_the_connections_of_a_group_are_told_from_others_and_end_at_once() -> None:
    store, endpoint = host_store(HOST)
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=peer, args=(endpoint, theirs))
    process.start()
    group = form_gloo(scoped(store, "group"), 0, 2, host=HOST, limit=LIMIT)
    try:
        (link,) = find_links(scoped(store, "group"), 0, 2)
        assert ours.poll(300)
        assert ours.recv() == "waits"
        end_links([link])  # while this process keeps the group
        assert ours.poll(60)
        assert ours.recv() == "has noticed"
        assert connect_store(endpoint, 10).check(["absent"]) is False
    finally:
        del group
        process.kill()
        process.join()


def test_where_members_are_threads_no_connection_is_taken_for_another_s() -> None:
    store, endpoint = host_store(HOST)
    stores = [scoped(each, "group") for each in (store, connect_store(endpoint, 20))]
    groups = form(stores)
    assert len(groups) == 2
    assert [find_links(each, rank, 2) for rank, each in enumerate(stores)] == [set(), set()]


def test_groups_form_while_another_thread_looks_at_the_sockets() -> None:
    """It holds copies of their descriptors, and the kernel gives the number of a copy to the next socket."""
    store, endpoint = host_store(HOST)
    stores, done = [store, *(connect_store(endpoint, 20) for _ in range(2))], threading.Event()
    looking = [threading.Thread(target=look, args=(done,)) for _ in range(2)]
    for thread in looking:
        thread.start()
    try:
        for number in range(25):
            groups = form([scoped(each, str(number)) for each in stores])
            received = torch.zeros(2)
            for work in (groups[0].recv([received], 2, 1), groups[2].send([torch.ones(2)], 0, 1)):
                work.wait(LIMIT)
            assert received.sum() == 2
    finally:
        done.set()
        for thread in looking:
            thread.join()


def look(done: threading.Event) -> None:
    while not done.is_set():
        listeners()

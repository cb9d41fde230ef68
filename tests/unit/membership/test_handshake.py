"""The handshake: who has the token is admitted, and nobody learns or reuses anything by it."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from together import at_once

from kdcl_dist.membership.handshake import SIZE, ForeignPeer, admit, enter, sign

TOKEN = "ab" * 32


def both(member: Callable[[socket.socket], object], token: str = TOKEN) -> list[BaseException | None]:
    """How the handshake ended for a store with a token, and for `member`."""
    ours, theirs = socket.socketpair()
    found: list[BaseException | None] = [None, None]

    def run(index: int, work: Callable[[socket.socket], object], link: socket.socket) -> None:
        with link:
            try:
                work(link)
            except (ForeignPeer, OSError) as error:
                found[index] = error

    jobs = [(0, lambda link: admit(link, token, 5), ours), (1, member, theirs)]
    at_once(lambda number: run(*jobs[number]), 2)
    return found


def test_the_same_token_admits() -> None:
    assert both(lambda link: enter(link, TOKEN, 5)) == [None, None]


@pytest.mark.parametrize("token", ["", "ab" * 31, "ac" * 32, TOKEN.upper()])
def test_another_token_does_not(token: str) -> None:
    store, member = both(lambda link: enter(link, token, 5))
    assert isinstance(store, ForeignPeer)
    assert isinstance(member, ForeignPeer)


@given(st.binary(max_size=200))
def test_bytes_do_not(sent: bytes) -> None:
    received = []

    def stranger(link: socket.socket) -> None:
        received.append(link.recv(1000))
        link.sendall(sent)
        link.shutdown(socket.SHUT_WR)
        received.append(link.recv(1000))

    (store, _) = both(stranger)
    assert store is not None
    assert len(received[0]) == SIZE
    assert received[1:] in ([], [b""], [bytes(SIZE)])  # closed, or refused


def test_what_was_seen_of_another_handshake_does_not() -> None:
    seen = []

    def member(link: socket.socket) -> None:
        challenge = link.recv(SIZE)
        seen.append(bytes(SIZE) + sign(TOKEN, b"member", challenge, bytes(SIZE)))
        link.sendall(seen[0])
        seen.append(link.recv(SIZE))

    assert both(member)[0] is None
    assert isinstance(
        both(lambda link: (link.recv(SIZE), link.sendall(seen[0]), link.recv(SIZE)))[0], ForeignPeer
    )
    # The store's own proof is of another kind than a member's.
    reflected = lambda link: (link.recv(SIZE), link.sendall(bytes(SIZE) + seen[1]), link.recv(SIZE))  # noqa: E731
    assert isinstance(both(reflected)[0], ForeignPeer)


def test_a_peer_that_sends_byte_by_byte_does_not_prolong_the_limit() -> None:
    ours, theirs = socket.socketpair()
    stop = threading.Event()

    def drip() -> None:
        while not stop.wait(0.01):
            try:
                theirs.send(b"x")
            except OSError:
                return

    thread = threading.Thread(target=drip)
    with ours, theirs:
        thread.start()
        try:
            with pytest.raises(TimeoutError):
                admit(ours, TOKEN, 0.1)
        finally:
            stop.set()
            thread.join()


@given(st.lists(st.binary(max_size=4), max_size=4), st.lists(st.binary(max_size=4), max_size=4))
def test_texts_that_are_divided_otherwise_have_another_signature(
    left: list[bytes], right: list[bytes]
) -> None:
    assert (sign(TOKEN, *left) == sign(TOKEN, *right)) == (left == right)

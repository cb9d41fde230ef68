"""Listening sockets: found, and closed to newcomers, by real connections."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from kdcl_dist.utils.listeners import Listener, address_of, end_link, links, listeners, refuse_newcomers


@pytest.mark.parametrize(
    ("family", "address"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")], ids=["IPv4", "IPv6"]
)
def test_a_listener_keeps_its_connections_and_takes_no_other(family: int, address: str) -> None:
    before = listeners()
    try:
        listener = socket.create_server((address, 0), family=family)
    except OSError:
        pytest.skip("this machine has no such address")
    with listener, socket.create_connection(listener.getsockname()[:2], timeout=20) as link:
        accepted, _ = listener.accept()
        with accepted, socket.socket(family) as other:
            (found,) = listeners() - before
            assert found.fd == listener.fileno()
            refuse_newcomers(found)
            other.settimeout(0.5)
            with pytest.raises(TimeoutError):
                other.connect(listener.getsockname())
            link.sendall(b"still there")
            assert accepted.recv(100) == b"still there"


def test_a_listener_on_the_descriptor_of_a_closed_one_is_another() -> None:
    """A member that forms a group anew while the sockets of the last one close finds its own."""
    address = ("127.0.0.1", 0)
    with socket.create_server(address) as first:
        before = listeners()
        with socket.create_server(address) as newcomer:
            os.dup2(newcomer.fileno(), first.fileno())
        assert {found.fd for found in listeners() - before} == {first.fileno()}


def test_what_is_no_socket_is_passed_over() -> None:
    left, right = socket.socketpair()
    with left, right, Path(os.devnull).open() as file:
        for fd in (file.fileno(), -1):
            refuse_newcomers(Listener(fd, 0))
        assert not {found.fd for found in listeners()} & {left.fileno(), file.fileno()}


def test_a_socket_that_was_opened_by_its_path_leaves_nothing_open(tmp_path: Path) -> None:
    """As the server of processes is reached; a copy of such a descriptor is no socket."""
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
        server.listen()
        by_path = os.open(tmp_path / "socket", os.O_PATH)
        try:
            before = len(list(Path("/proc/self/fd").iterdir()))
            assert by_path not in {found.fd for found in listeners()}
            refuse_newcomers(Listener(by_path, 0))
            assert len(list(Path("/proc/self/fd").iterdir())) == before
        finally:
            os.close(by_path)


def test_a_connection_ends_at_once_and_no_other_does() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        pairs = [(socket.create_connection(server.getsockname(), 20), server.accept()[0]) for _ in range(2)]
        own = next(link for link in links() if link.own == pairs[0][0].getsockname())
        assert (own.fd, own.other) == (pairs[0][0].fileno(), server.getsockname())
        end_link(own._replace(inode=0))  # its descriptor is another's by now
        pairs[0][0].sendall(b"still there")
        assert pairs[0][1].recv(100) == b"still there"
        end_link(own)
        assert pairs[0][1].recv(100) == b""
        pairs[1][0].sendall(b"still there")
        assert pairs[1][1].recv(100) == b"still there"
        for link in (each for pair in pairs for each in pair):
            link.close()
        end_link(own)  # it is closed


def test_a_listener_has_an_address_until_it_is_closed() -> None:
    before = listeners()
    with socket.create_server(("127.0.0.1", 0)) as server:
        (found,) = listeners() - before
        assert address_of(found) == server.getsockname()
    assert address_of(found) is None

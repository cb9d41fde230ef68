"""Listening sockets: found, and closed to newcomers, by real connections."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from kdcl_dist.utils.listeners import end_links, links, listeners, refuse_newcomers


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
            assert found.own == listener.getsockname()[:2]
            refuse_newcomers([found])
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
            own = newcomer.getsockname()
        assert {found.own for found in listeners() - before} == {own}


def test_a_copy_of_a_listener_is_no_other() -> None:
    """Another thread that looks at the sockets of this process holds copies of them for a moment."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        before = listeners()
        with server.dup():
            assert listeners() == before


def test_what_has_the_descriptor_of_a_closed_socket_stays_as_it_is() -> None:
    before = listeners()
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_server(("127.0.0.1", 0)) as closing:
        refusing = {found for found in listeners() - before if found.own == closing.getsockname()}
        link = socket.create_connection(server.getsockname(), timeout=20)
        accepted = server.accept()[0]
        fd = closing.detach()
        os.dup2(accepted.fileno(), fd)
        with link, accepted, socket.socket(fileno=fd) as there:
            assert len(refusing) == 1
            refuse_newcomers(refusing)
            link.sendall(b"still there")
            there.settimeout(20)
            assert there.recv(100) == b"still there"


def test_a_look_lets_the_sockets_of_others_block_as_before() -> None:
    """After a user's `socket.setdefaulttimeout` Python makes sockets that do not block."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        socket.setdefaulttimeout(5)
        try:
            assert {found.own for found in listeners()} >= {server.getsockname()}
            links()
        finally:
            socket.setdefaulttimeout(None)
        assert os.get_blocking(server.fileno())


def test_what_is_no_socket_is_passed_over() -> None:
    left, right = socket.socketpair()
    with left, right, Path(os.devnull).open() as file:
        inodes = {os.fstat(fd).st_ino for fd in (left.fileno(), right.fileno(), file.fileno())}
        assert not {found.inode for found in (*listeners(), *links())} & inodes


def test_a_socket_that_was_opened_by_its_path_leaves_nothing_open(tmp_path: Path) -> None:
    """As the server of processes is reached; a copy of such a descriptor is no socket."""
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
        server.listen()
        by_path = os.open(tmp_path / "socket", os.O_PATH)
        try:
            before = len(list(Path("/proc/self/fd").iterdir()))
            found = listeners()
            assert os.fstat(by_path).st_ino not in {listener.inode for listener in found}
            refuse_newcomers([])
            assert len(list(Path("/proc/self/fd").iterdir())) == before
        finally:
            os.close(by_path)


def test_a_connection_ends_at_once_and_no_other_does() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        pairs = [(socket.create_connection(server.getsockname(), 20), server.accept()[0]) for _ in range(2)]
        own = next(link for link in links() if link.own == pairs[0][0].getsockname())
        assert (own.inode, own.other) == (os.fstat(pairs[0][0].fileno()).st_ino, server.getsockname())
        end_links([own._replace(inode=0)])  # it is closed, and its addresses are another's by now
        pairs[0][0].sendall(b"still there")
        assert pairs[0][1].recv(100) == b"still there"
        end_links([own])
        assert pairs[0][1].recv(100) == b""
        pairs[1][0].sendall(b"still there")
        assert pairs[1][1].recv(100) == b"still there"
        for link in (each for pair in pairs for each in pair):
            link.close()
        end_links([own])  # it is closed

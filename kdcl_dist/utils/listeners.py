"""The TCP sockets of this process: those that listen, how one of them accepts no more, and connections."""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

__all__ = ["Link", "Listener", "address_of", "end_link", "links", "listeners", "refuse_newcomers"]

#: Linux's option of a socket that filters its packets, which Python does not name.
SO_ATTACH_FILTER = 26
#: A filter of one instruction (code, jumps, operand): keep 0 bytes of every packet.
DROP_ALL = struct.pack("HBBI", 0x06, 0, 0, 0)


class Listener(NamedTuple):
    """A socket on which this process listens; the kernel gives the descriptor of a closed one to the next."""

    fd: int
    inode: int


class Link(NamedTuple):
    """A connection of this process; `own` and `other` are the addresses and ports of its ends."""

    fd: int
    inode: int
    own: tuple[str, int]
    other: tuple[str, int]


def listeners() -> set[Listener]:
    """The TCP sockets on which this process listens; none where there is no /proc."""
    return {
        Listener(fd, os.fstat(found.fileno()).st_ino)
        for fd, found in _tcp_sockets()
        if found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    }


def address_of(listener: Listener) -> tuple[str, int] | None:
    """The address and port of a socket that listens; None once it is closed."""
    with contextlib.suppress(OSError), _socket_of(listener.fd) as found:
        host, port, *_ = found.getsockname()
        return host, port
    return None


def links() -> list[Link]:
    """The TCP connections of this process; none where there is no /proc."""
    found = []
    for fd, each in _tcp_sockets():
        with contextlib.suppress(OSError):  # it is not connected
            own, other = each.getsockname()[:2], each.getpeername()[:2]
            found.append(Link(fd, os.fstat(each.fileno()).st_ino, own, other))
    return found


def end_link(link: Link) -> None:
    """End a connection at once, whose owner closes it later; another one that has its descriptor stays."""
    with contextlib.suppress(OSError), _socket_of(link.fd) as found:
        if os.fstat(found.fileno()).st_ino == link.inode:
            found.shutdown(socket.SHUT_RDWR)


def _tcp_sockets() -> Iterator[tuple[int, socket.socket]]:
    """Each TCP socket of this process, by a descriptor of its own that closes with the next one."""
    try:
        numbers = [int(entry.name) for entry in Path("/proc/self/fd").iterdir()]
    except OSError:
        return
    for fd in numbers:
        with contextlib.suppress(OSError), _socket_of(fd) as found:
            if found.family in (socket.AF_INET, socket.AF_INET6) and found.type == socket.SOCK_STREAM:
                yield fd, found


def refuse_newcomers(listener: Listener) -> None:
    """Let a socket, whose owner cannot close it, accept no further connection; those that it has stay.

    The socket stays as it was where the kernel has no such filters.
    """
    program = ctypes.create_string_buffer(DROP_ALL)
    with contextlib.suppress(OSError), _socket_of(listener.fd) as found:
        found.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("HP", 1, ctypes.addressof(program)))


def _socket_of(fd: int) -> socket.socket:
    """The socket of a file descriptor, by a descriptor of its own.

    Raises:
        OSError: it is closed, or of no socket; also if it was opened by the path of one.
    """
    own = os.dup(fd)
    try:
        return socket.socket(fileno=own)
    except OSError:
        os.close(own)
        raise

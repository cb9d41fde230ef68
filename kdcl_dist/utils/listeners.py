"""The TCP sockets of this process: those that listen, how one of them accepts no more, and connections.

A socket is known by its inode. Descriptors do not name it: the kernel gives that of a closed socket to the
next, and other threads may hold copies for a moment, as the functions below do.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import struct
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import NamedTuple

__all__ = ["Link", "Listener", "end_links", "links", "listeners", "refuse_newcomers"]

#: Linux's option of a socket that filters its packets, which Python does not name.
SO_ATTACH_FILTER = 26
#: A filter of one instruction (code, jumps, operand): keep 0 bytes of every packet.
DROP_ALL = struct.pack("HBBI", 0x06, 0, 0, 0)


class Listener(NamedTuple):
    """A socket on which this process listens, and its address and port."""

    inode: int
    own: tuple[str, int]


class Link(NamedTuple):
    """A connection of this process; `own` and `other` are the addresses and ports of its ends."""

    inode: int
    own: tuple[str, int]
    other: tuple[str, int]


def listeners() -> set[Listener]:
    """The TCP sockets on which this process listens; none where there is no /proc."""
    return {
        Listener(inode, found.getsockname()[:2])
        for inode, found in _tcp_sockets()
        if found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    }


def links() -> set[Link]:
    """The TCP connections of this process; none where there is no /proc."""
    found = set()
    for inode, each in _tcp_sockets():
        with contextlib.suppress(OSError):  # it is not connected
            found.add(Link(inode, each.getsockname()[:2], each.getpeername()[:2]))
    return found


def end_links(ended: Collection[Link]) -> None:
    """End connections at once, whose owner closes them later; what is closed by now is passed over."""
    inodes = {link.inode for link in ended}
    for inode, found in _tcp_sockets():
        if inode in inodes:
            with contextlib.suppress(OSError):
                found.shutdown(socket.SHUT_RDWR)


def refuse_newcomers(refusing: Collection[Listener]) -> None:
    """Let sockets, whose owner cannot close them, accept no further connection; those that they have stay.

    A socket stays as it was where the kernel has no such filters.
    """
    inodes = {listener.inode for listener in refusing}
    program = ctypes.create_string_buffer(DROP_ALL)
    option = struct.pack("HP", 1, ctypes.addressof(program))
    for inode, found in _tcp_sockets():
        if inode in inodes:
            with contextlib.suppress(OSError):
                found.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, option)


def _tcp_sockets() -> Iterator[tuple[int, socket.socket]]:
    """The inode and a descriptor, which closes with the next one, of each TCP socket of this process."""
    try:
        numbers = [int(entry.name) for entry in Path("/proc/self/fd").iterdir()]
    except OSError:
        return
    for fd in numbers:
        with contextlib.suppress(OSError), _socket_of(fd) as found:
            if found.family in (socket.AF_INET, socket.AF_INET6) and found.type == socket.SOCK_STREAM:
                yield os.fstat(found.fileno()).st_ino, found


def _socket_of(fd: int) -> socket.socket:
    """The socket of a file descriptor, by a descriptor of its own.

    Raises:
        OSError: it is closed, or of no socket; also if it was opened by the path of one.
    """
    own = os.dup(fd)
    try:
        blocks = os.get_blocking(own)
        found = socket.socket(fileno=own)
    except OSError:
        os.close(own)
        raise
    # With socket.setdefaulttimeout, Python lets no call block, and both descriptors share that.
    os.set_blocking(own, blocks)
    return found

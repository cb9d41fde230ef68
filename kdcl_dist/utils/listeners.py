"""The TCP sockets on which this process accepts connections, and how one of them accepts no more."""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import struct
from pathlib import Path
from typing import NamedTuple

__all__ = ["Listener", "listeners", "refuse_newcomers"]

#: Linux's option of a socket that filters its packets, which Python does not name.
SO_ATTACH_FILTER = 26
#: A filter of one instruction (code, jumps, operand): keep 0 bytes of every packet.
DROP_ALL = struct.pack("HBBI", 0x06, 0, 0, 0)


class Listener(NamedTuple):
    """A socket on which this process listens; the kernel gives the descriptor of a closed one to the next."""

    fd: int
    inode: int


def listeners() -> set[Listener]:
    """The TCP sockets on which this process listens; none where there is no /proc."""
    try:
        numbers = [int(entry.name) for entry in Path("/proc/self/fd").iterdir()]
    except OSError:
        return set()
    return {found for found in map(_listener, numbers) if found}


def _listener(fd: int) -> Listener | None:
    with contextlib.suppress(OSError), _socket_of(fd) as found:
        is_tcp = found.family in (socket.AF_INET, socket.AF_INET6)
        if is_tcp and found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            return Listener(fd, os.fstat(found.fileno()).st_ino)
    return None


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

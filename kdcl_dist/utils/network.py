"""Network interfaces: NCCL takes the name of an interface, where gloo takes its address."""

from __future__ import annotations

import fcntl
import socket
import struct

__all__ = ["interface_of"]

#: The ioctl of Linux for the IPv4 address of an interface.
SIOCGIFADDR = 0x8915


def interface_of(address: str) -> str | None:
    """The name of this host's interface with the IPv4 address `address`, or None."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as query:
        for _, name in socket.if_nameindex():
            request = struct.pack("256s", name.encode()[:15])
            try:
                answer = fcntl.ioctl(query, SIOCGIFADDR, request)
            except OSError:  # an interface without an IPv4 address
                continue
            if socket.inet_ntoa(answer[20:24]) == address:
                return name
    return None

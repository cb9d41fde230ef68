"""Which network interface has an address: NCCL wants to be told by name where gloo takes the address."""

from __future__ import annotations

import fcntl
import socket
import struct

__all__ = ["interface_of"]

#: Linux' number for "the IPv4 address of this interface".
SIOCGIFADDR = 0x8915


def interface_of(address: str) -> str | None:
    """The name of this machine's interface with an IPv4 address, or None if there is none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as question:
        for _, name in socket.if_nameindex():
            request = struct.pack("256s", name.encode()[:15])
            try:
                answer = fcntl.ioctl(question, SIOCGIFADDR, request)
            except OSError:  # an interface without such an address
                continue
            if socket.inet_ntoa(answer[20:24]) == address:
                return name
    return None

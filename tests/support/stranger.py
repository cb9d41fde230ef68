"""A program without the run's token: it attacks TCP ports of this machine.

    python stranger.py PORT...

It prints what it received as JSON, {port: [hexadecimal text, ...]}, with an empty list for a port that takes
no connection. Then it holds its connections until its input closes.
"""

import contextlib
import json
import os
import socket
import struct
import sys

HELD = 200
ATTACKS = [
    b"",
    os.urandom(500),
    struct.pack("<q", 0) + os.urandom(500),  # gloo's number of a peer
    struct.pack("<BI", 0, 0x3C85F7CE) + bytes([17]) * 100,  # torch's store: a client that asks for all keys
    b'["lookup", ["requests"]]\n["set", "failed", "{}"]\n',  # the run's own store, without its handshake
]


def attack(port: int, sent: bytes) -> bytes:
    """What comes back."""
    link = socket.create_connection(("127.0.0.1", port), timeout=10)
    received = b""
    with link, contextlib.suppress(OSError):  # cut off
        link.sendall(sent)
        link.shutdown(socket.SHUT_WR)
        while more := link.recv(1000):
            received += more
    return received


def is_open(port: int) -> bool:
    """Whether the port takes a connection."""
    with socket.socket() as link:
        link.settimeout(1)
        return link.connect_ex(("127.0.0.1", port)) == 0


found, held = {}, []
for port in map(int, sys.argv[1:]):
    found[port] = [attack(port, sent).hex() for sent in ATTACKS * 5] if is_open(port) else []
    held += [socket.create_connection(("127.0.0.1", port), timeout=10) for _ in range(HELD) if found[port]]
print(json.dumps(found), flush=True)
sys.stdin.read()

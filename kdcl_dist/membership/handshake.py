"""The handshake of a connection: both ends show that they have the token of the run, and neither sends it.

Each end sends 32 random bytes, and the HMAC of both ends' bytes under the token. An HMAC answers one
connection only, in one direction, so that whoever has seen it cannot use it again.
"""

from __future__ import annotations

import hmac
import secrets
import socket
import time

__all__ = ["ForeignPeer", "admit", "enter", "sign"]

#: Bytes of a challenge and of a proof.
SIZE = 32
#: The answer to a peer without the token, in place of a proof.
REFUSED = bytes(SIZE)


class ForeignPeer(Exception):
    """The other end of a connection does not have the token of this end."""


def sign(token: str, *texts: bytes) -> bytes:
    """The HMAC-SHA256 of texts under a token; the same bytes, divided otherwise, have another one."""
    framed = b"".join(len(text).to_bytes(8, "big") + text for text in texts)
    return hmac.digest(token.encode(), framed, "sha256")


def admit(link: socket.socket, token: str, limit_s: float) -> None:
    """The side of the store.

    Raises:
        ForeignPeer: the peer does not have the token.
        OSError: the peer went away, or did not answer within `limit_s` seconds.
    """
    own = secrets.token_bytes(SIZE)
    link.settimeout(limit_s)
    link.sendall(own)
    answer = _receive(link, 2 * SIZE, limit_s)
    theirs, proof = answer[:SIZE], answer[SIZE:]
    if not hmac.compare_digest(proof, sign(token, b"member", own, theirs)):
        link.sendall(REFUSED)
        raise ForeignPeer("the peer does not have the token of the run")
    link.sendall(sign(token, b"store", own, theirs))


def enter(link: socket.socket, token: str, limit_s: float) -> None:
    """The side of a member; raises as `admit`."""
    link.settimeout(limit_s)
    theirs, own = _receive(link, SIZE, limit_s), secrets.token_bytes(SIZE)
    link.sendall(own + sign(token, b"member", theirs, own))
    if not hmac.compare_digest(_receive(link, SIZE, limit_s), sign(token, b"store", theirs, own)):
        raise ForeignPeer("the store does not have the token of this process")


def _receive(link: socket.socket, size: int, limit_s: float) -> bytes:
    """Exactly `size` bytes; a peer that sends them one by one does not prolong the limit."""
    found, deadline = b"", time.monotonic() + limit_s
    while len(found) < size:
        link.settimeout(max(0.001, deadline - time.monotonic()))
        if not (more := link.recv(size - len(found))):
            raise ConnectionResetError("the connection was closed in its handshake")
        found += more
    return found

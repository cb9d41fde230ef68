"""The address of the coordinator's store, and the token that admits to it."""

from __future__ import annotations

import secrets
import uuid
from dataclasses import dataclass, field

__all__ = ["Endpoint"]


@dataclass(frozen=True)
class Endpoint:
    """Where the coordinator's store listens; launchers hand it to the members of the run, and to no other.

    Attributes:
        host: address of the coordinator's host.
        port: of the store.
        id: another for each coordinator of a run.
        token: the secret of the members. It is never written, shown or sent over a connection of the run.
    """

    host: str
    port: int
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    token: str = field(default_factory=lambda: secrets.token_hex(32), repr=False)

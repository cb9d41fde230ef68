"""Where the coordinator listens."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field

__all__ = ["Endpoint"]


@dataclass(frozen=True)
class Endpoint:
    """Where the coordinator's store listens; `id` tells it from that of a coordinator before."""

    host: str
    port: int
    id: str = field(default_factory=lambda: uuid.uuid4().hex)

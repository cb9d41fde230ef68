"""The address of the coordinator's store."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field

__all__ = ["Endpoint"]


@dataclass(frozen=True)
class Endpoint:
    """The address of the coordinator's store; `id` is another for each coordinator of a run."""

    host: str
    port: int
    id: str = field(default_factory=lambda: uuid.uuid4().hex)

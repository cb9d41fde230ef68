"""What the server of processes does when it is told that a run trains: the imports of another coordinator.

The server imports this module at its start. A signal then lets it import the rest, between two processes that
it forks: so a run's start does not wait for it, and a coordinator that replaces another does not either.
"""

from __future__ import annotations

import importlib
import os
import signal
from contextlib import suppress
from types import FrameType

from kdcl_dist.launch.forkserver import FOR_COORDINATORS, LATER

__all__: list[str] = []

_server = os.getpid()


def _import_rest(_number: int, _frame: FrameType | None) -> None:
    """Import in the server; a process that it has forked ignores the signal."""
    if os.getpid() != _server:
        return
    for name in FOR_COORDINATORS:
        with suppress(ImportError):
            importlib.import_module(name)


signal.signal(LATER, _import_rest)

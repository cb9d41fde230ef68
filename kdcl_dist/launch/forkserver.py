"""The process from which those of a cohort on this machine are forked: it has imported what they need.

Nothing heavy is imported here, so that the server can start first and import beside its parent.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from multiprocessing import forkserver
from typing import Any

__all__ = ["start_server"]

#: torch's optimisers import torch._dynamo when they are first used, 2 s in each process.
MODULES = ["kdcl_dist.launch.entrypoints", "torch._dynamo"]


def start_server() -> Any:
    """The context of the server's processes; the first call starts the server and does not wait for it."""
    # A store whose peer has died logs a C++ stack for each of its connections; the cause is told by us.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(MODULES)
    # Ctrl-C reaches the whole foreground group: the server must not die of it while it imports.
    old = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, old)
    return context

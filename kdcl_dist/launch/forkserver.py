"""The server from which a cohort's processes on this machine are forked, with their imports done.

This module imports nothing heavy, so that the server starts first and imports at the same time as its parent.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from multiprocessing import forkserver
from typing import Any

__all__ = ["start_server"]

#: The server imports these. torch's optimisers import torch._dynamo at their first use: 2 s in each process.
MODULES = ["kdcl_dist.launch.entrypoints", "torch._dynamo"]


def start_server() -> Any:
    """The multiprocessing context of the server; the first call starts the server, without a wait."""
    # torch logs lines of C++ for each connection that breaks; the launcher reports the cause.
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

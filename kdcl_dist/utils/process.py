"""What a process sets for itself: its end with its parent, and how malloc treats freed memory."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import threading
from multiprocessing.connection import wait

__all__ = ["end_with_parent", "keep_freed_memory"]

#: Parameters of mallopt, from glibc's malloc.h.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
#: Larger than any tensor of a step, in bytes; fits mallopt's int.
LARGEST = 1 << 30


def end_with_parent() -> None:
    """End this process, with exit code 1, when its parent dies in any way.

    An orphan would hold its memory and its device for ever. The process must be one of multiprocessing.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        """End this process once its parent has ended."""
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, name="kdcl-parent", daemon=True).start()


def keep_freed_memory() -> None:
    """Let malloc keep the memory that a step frees for the next step.

    Every step allocates and frees the same tensors. By default glibc returns large blocks to the kernel,
    which then hands out new pages one fault at a time: on a CPU about a tenth of a step. The peak of memory
    stays the same; the process holds it between steps. Other C libraries keep their defaults.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    mallopt(M_MMAP_THRESHOLD, LARGEST)
    mallopt(M_TRIM_THRESHOLD, LARGEST)

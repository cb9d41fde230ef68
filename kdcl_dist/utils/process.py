"""A process that a dead parent left behind would hold memory and a device for ever; so none stays."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import threading
from multiprocessing.connection import wait

__all__ = ["end_with_parent", "keep_freed_memory"]


def end_with_parent() -> None:
    """End this process when the one that started it dies, however it dies."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, name="kdcl-parent", daemon=True).start()


#: Of glibc's malloc.h.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3


#: Larger than any tensor of a step, and what mallopt's int can hold.
LARGEST = 1 << 30


def keep_freed_memory() -> None:
    """Let malloc keep what a step frees, for the next step, instead of giving it back to the kernel.

    A step allocates and frees the same tensors again and again. By default glibc returns the larger ones
    to the kernel each time, which then hands out fresh pages one fault at a time: on a CPU about a tenth
    of a step. The peak is the same; between the peaks the process keeps it. Other C libraries are left as
    they are.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    mallopt(M_MMAP_THRESHOLD, LARGEST)
    mallopt(M_TRIM_THRESHOLD, LARGEST)

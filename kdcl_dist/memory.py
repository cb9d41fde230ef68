"""How a process of the cast treats its memory."""

from __future__ import annotations

import ctypes

__all__ = ["keep_freed_memory"]

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

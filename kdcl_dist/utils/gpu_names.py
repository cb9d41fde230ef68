"""Names of GPUs that are the same in all processes of a host. Nothing here imports torch."""

from __future__ import annotations

import os

__all__ = ["gpu_name"]


def gpu_name(index: int) -> str:
    """A GPU of this process by its number in the host, such as "GPU 3".

    Args:
        index: of the GPU among those of CUDA_VISIBLE_DEVICES, by which a process counts.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    name = visible[index].strip() if index < len(visible) else ""
    return f"GPU {name or index}" if name.isdecimal() or not name else name

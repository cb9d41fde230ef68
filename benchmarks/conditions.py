"""The conditions under which a page of results was measured."""

from __future__ import annotations

import os
import platform

import torch

__all__ = ["conditions"]


def conditions(module: str, how: str) -> list[str]:
    """Lines of Markdown: the machine, the versions, the method, and the command.

    Args:
        module: name of the module in `benchmarks`.
        how: rounds, sizes and other settings of the measurement.
    """
    machine = f"{os.cpu_count()} cores ({platform.machine()}), no GPU"
    load = f"load average at the end {os.getloadavg()[0]:.1f}"
    return [f"{machine}, PyTorch {torch.__version__}, {load}.", f"{how}.", f"`python -m benchmarks.{module}`"]

"""Time on a device: by CUDA events on a GPU, by the clock on a processor."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import torch

__all__ = ["alternate", "milliseconds"]


def milliseconds(work: Callable[[], None], device: torch.device, repeats: int = 1) -> float:
    """Mean milliseconds of the repeats, from the first one's start to the last one's end on the device."""
    if device.type != "cuda":
        started = time.perf_counter()
        for _ in range(repeats):
            work()
        return 1000 * (time.perf_counter() - started) / repeats
    event: Any = torch.cuda.Event
    begin, end = event(enable_timing=True), event(enable_timing=True)
    torch.cuda.synchronize(device)
    begin.record()
    for _ in range(repeats):
        work()
    end.record()
    torch.cuda.synchronize(device)
    return float(begin.elapsed_time(end)) / repeats


def alternate(
    works: Sequence[Callable[[], None]], device: torch.device, rounds: int, repeats: int = 5
) -> list[float]:
    """Median milliseconds of each work over the rounds; every round times all works, the first warms up."""
    found = [[milliseconds(work, device, repeats) for work in works] for _ in range(rounds + 1)]
    return [median(column) for column in zip(*found[1:], strict=True)]

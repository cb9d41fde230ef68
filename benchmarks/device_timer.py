"""Time on a device: CUDA events on a GPU, the clock on a processor."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import torch

__all__ = ["milliseconds", "take_turns"]


def milliseconds(work: Callable[[], None], device: torch.device, repeats: int = 1) -> float:
    """Mean of some repeats, from the first one's start to the last one's end on the device."""
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


def take_turns(
    works: Sequence[Callable[[], None]], device: torch.device, rounds: int, repeats: int = 5
) -> list[float]:
    """Median milliseconds of each over rounds, in each of which all are timed once; the first is dropped."""
    found = [[milliseconds(work, device, repeats) for work in works] for _ in range(rounds + 1)]
    return [median(column) for column in zip(*found[1:], strict=True)]

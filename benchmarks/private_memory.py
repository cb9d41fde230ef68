"""Private memory of a student after an epoch of loading, while another student loads the same data."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kdcl_dist.data.dataset import ArrowDataset, Info
from kdcl_dist.data.loader import Batch, batches
from kdcl_dist.data.sampling import batches_of
from kdcl_dist.data.views import Transforms, Views
from kdcl_dist.data.writer import write_dataset

__all__ = ["growth", "write_raw"]

SHAPE = (3, 64, 64)
STUDENTS = 2
WAIT_S = 120


def write_raw(path: Path, count: int) -> str:
    """A raw data set of `count` random images of 12,288 bytes."""
    rng = np.random.default_rng(0)
    size = int(np.prod(SHAPE))
    info = Info(("x",), "raw", 3, SHAPE, (0.5,) * 3, (0.5,) * 3)
    write_dataset(path, ((0, rng.bytes(size)) for _ in range(count)), info)
    with path.open("rb+") as file:
        os.fsync(file.fileno())  # unwritten pages would count as private
    return str(path)


def growth(large: str, small: str, workers: int) -> float:
    """Private memory that reading `large` needs beyond reading `small`, as a share of the size of `large`.

    Two students read the same number of images of both. The memory of a student includes its loader
    processes; the result is that of the student with the larger growth.
    """
    context = multiprocessing.get_context("spawn")
    found, barrier = context.SimpleQueue(), context.Barrier(STUDENTS)
    jobs = [
        context.Process(target=_read, args=(large, small, workers, seed, barrier, found))
        for seed in range(STUDENTS)
    ]
    for job in jobs:
        job.start()
    grown = max(found.get() for _ in jobs)
    for job in jobs:
        job.join()
    return float(grown) / sum(file.stat().st_size for file in ArrowDataset(large).files)


def _read(large: str, small: str, workers: int, seed: int, barrier: Any, found: Any) -> None:
    torch.set_num_threads(1)
    own = []
    for path in (small, large):
        stream = _batches(path, workers, seed, len(ArrowDataset(large)))
        barrier.wait(WAIT_S)  # both students have read, and both have the data open
        own.append(_private_bytes())
        barrier.wait(WAIT_S)
        del stream
    found.put(own[1] - own[0])


def _batches(path: str, workers: int, seed: int, count: int) -> Iterator[Batch]:
    """A loader that has delivered `count` images of one or several epochs, except for the last batch."""
    dataset = ArrowDataset(path)
    views = Views(dataset, Transforms([{"name": "RandomHorizontalFlip"}]), seed)
    order = np.random.default_rng(seed).permutation(count) % len(dataset)
    schedule = batches_of(order, 64)
    stream = batches(views, [(0, ids_B) for ids_B in schedule], workers=workers, timeout_s=WAIT_S)
    for _ in range(len(schedule) - 1):
        next(stream)
    return stream


def _private_bytes() -> int:
    pids = ["self", *(str(child.pid) for child in multiprocessing.active_children())]
    return sum(_private_of(Path("/proc") / pid / "smaps") for pid in pids)


def _private_of(maps: Path) -> int:
    """Bytes that a process has written, and pages of the data sets that no other process maps.

    Pages of libraries do not count: unrelated processes make them shared or private.
    """
    total, is_data = 0, False
    for line in maps.read_text().splitlines():
        words = line.split()
        if not words[0].endswith(":"):
            is_data = words[-1].endswith(".arrow")
        elif words[0] == "Private_Dirty:" or (is_data and words[0] == "Private_Clean:"):
            total += int(words[1]) * 1024
    return total

"""Whether images can be decoded, in worker processes; light to import, so that these start quickly."""

from __future__ import annotations

import multiprocessing as mp
import os
import signal
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from multiprocessing.connection import wait
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, TypeVar

import numpy as np

from kdcl_dist.data.decode import decode
from kdcl_dist.errors import DataError, one_line

__all__ = ["SUFFIXES", "Item", "Rejected", "Workers", "accept", "moments"]

CHANNELS = 3
SUFFIXES = (".jpg", ".jpeg", ".png")
#: Images sent to a worker at a time, and such parcels a worker that may be on their way.
PARCEL = 8
PARCELS_AHEAD = 3

T = TypeVar("T")


class Item(NamedTuple):
    """One image of a source: label, name in reports, bytes or the file that holds them, their number."""

    label: int
    name: str
    data: bytes | Path
    size: int


class Rejected(NamedTuple):
    """Why an image is not taken."""

    reason: str


def accept(item: Item) -> bytes | Rejected:
    """An image's bytes if all of it can be decoded."""
    try:
        data = _read(item)
        decode(data, CHANNELS)
    except (ValueError, OSError) as error:
        return Rejected(str(error) if isinstance(error, ValueError) else one_line(error))
    return data


def moments(item: Item) -> tuple[int, list[int], list[int]] | None:
    """Number of pixels, their sums and sums of squares by channel; None if it cannot be decoded."""
    try:
        pixels_PC = decode(_read(item), CHANNELS).reshape(-1, CHANNELS)
    except (ValueError, OSError):
        return None
    squares_PC = np.square(pixels_PC, dtype=np.uint16)
    first_C, second_C = (values_PC.sum(0, dtype=np.uint64).tolist() for values_PC in (pixels_PC, squares_PC))
    return len(pixels_PC), first_C, second_C


def _read(item: Item) -> bytes:
    if isinstance(item.data, bytes):
        return item.data
    if item.data.suffix.lower() not in SUFFIXES:
        raise ValueError(f"its name does not end in {', '.join(SUFFIXES)}")
    return item.data.read_bytes()


class Workers:
    """Processes that look at images; a context manager.

    Args:
        count: number of processes; 0 does the work in this one.
    """

    def __init__(self, count: int) -> None:
        self.ahead = PARCELS_AHEAD * count
        context = mp.get_context("forkserver")
        self.pool = ProcessPoolExecutor(count, context, initializer=_prepare) if count else None

    def __enter__(self) -> Workers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.pool is not None:
            self.pool.shutdown(wait=True, cancel_futures=True)

    def map(self, function: Callable[[Item], T], items: Iterable[Item]) -> Iterator[tuple[Item, T]]:
        """Each item with the function's result, in order; a bounded number of items is read ahead.

        Raises:
            DataError: a process died.
        """
        if self.pool is None:
            yield from ((item, function(item)) for item in items)
            return
        rest = iter(items)
        waiting: deque[tuple[list[Item], Future[list[T]]]] = deque()
        try:
            while (parcel := list(islice(rest, PARCEL))) or waiting:
                if parcel:
                    waiting.append((parcel, self.pool.submit(_each, function, parcel)))
                if len(waiting) > self.ahead or not parcel:
                    done, future = waiting.popleft()
                    yield from zip(done, future.result(), strict=True)
        except BrokenProcessPool as error:
            raise DataError(
                "a process that checks images died, perhaps for want of memory; try fewer --workers "
                "(0 checks in this process)"
            ) from error


def _each(function: Callable[[Item], T], items: list[Item]) -> list[T]:
    return [function(item) for item in items]


def _prepare() -> None:
    """Leave Ctrl-C to the process that started this one, and end with it, however it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    warnings.simplefilter("ignore")  # Pillow's remarks on odd but readable images
    parent = mp.parent_process()
    assert parent is not None

    def watch(sentinel: int = parent.sentinel) -> None:
        wait([sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()

"""Checking in worker processes whether images can be decoded; light to import, for a quick start of these."""

from __future__ import annotations

import multiprocessing as mp
import signal
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, TypeVar

import numpy as np

from kdcl_dist.data.decode import MAX_FILE_BYTES, decode
from kdcl_dist.errors import DataError, one_line
from kdcl_dist.utils.files import read_regular
from kdcl_dist.utils.process import end_with_parent, share_folder

__all__ = ["SUFFIXES", "UNLABELLED", "Item", "Rejected", "Workers", "accept", "moments"]

#: The label of an image whose label cannot be read; it is rejected.
UNLABELLED = -1
SUFFIXES = (".jpg", ".jpeg", ".png")
#: Images that a worker takes at a time, and chunks that may wait for each worker.
CHUNK = 8
CHUNKS_AHEAD = 3

T = TypeVar("T")


class Rejected(NamedTuple):
    """The reason why an image is rejected."""

    reason: str


class Item(NamedTuple):
    """One image of a source: label, name in reports, its bytes or their file, number of bytes.

    A source that rejects an image itself gives the reason in place of the bytes.
    """

    label: int
    name: str
    data: bytes | Path | Rejected
    size: int


def accept(item: Item, channels: int) -> bytes | Rejected:
    """The bytes of an image, or `Rejected` if it cannot be decoded completely."""
    try:
        data = _read(item)
        decode(data, channels)
    except (ValueError, OSError) as error:
        return Rejected(str(error) if isinstance(error, ValueError) else one_line(error))
    return data


def moments(item: Item, channels: int) -> tuple[int, list[int], list[int]] | None:
    """Number of pixels, and their sums and sums of squares by channel; None if decoding fails."""
    try:
        pixels_PC = decode(_read(item), channels).reshape(-1, channels)
    except (ValueError, OSError):
        return None
    squares_PC = np.square(pixels_PC, dtype=np.uint16)
    first_C, second_C = (values_PC.sum(0, dtype=np.uint64).tolist() for values_PC in (pixels_PC, squares_PC))
    return len(pixels_PC), first_C, second_C


def _read(item: Item) -> bytes:
    if isinstance(item.data, Rejected):
        raise ValueError(item.data.reason)
    if isinstance(item.data, bytes):
        return item.data
    if item.data.suffix.lower() not in SUFFIXES:
        raise ValueError(f"its name does not end in {', '.join(SUFFIXES)}")
    return read_regular(item.data, MAX_FILE_BYTES)


class Workers:
    """Processes that check images; a context manager.

    Args:
        count: number of processes; 0 checks in this process.
    """

    def __init__(self, count: int) -> None:
        self.ahead = CHUNKS_AHEAD * count
        context = mp.get_context("forkserver")
        share_folder()
        self.pool = ProcessPoolExecutor(count, context, initializer=_initialise) if count else None

    def __enter__(self) -> Workers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.pool is not None:
            self.pool.shutdown(wait=True, cancel_futures=True)

    def map(self, function: Callable[[Item], T], items: Iterable[Item]) -> Iterator[tuple[Item, T]]:
        """Each item with the function's result, in order; reads a bounded number of items ahead.

        Raises:
            DataError: a process died.
        """
        if self.pool is None:
            yield from ((item, function(item)) for item in items)
            return
        rest = iter(items)
        waiting: deque[tuple[list[Item], Future[list[T]]]] = deque()
        try:
            while (chunk := list(islice(rest, CHUNK))) or waiting:
                if chunk:
                    waiting.append((chunk, self.pool.submit(_each, function, chunk)))
                if len(waiting) > self.ahead or not chunk:
                    done, future = waiting.popleft()  # without a limit, as Ctrl-C ends an import at any time
                    yield from zip(done, future.result(), strict=True)
        except BrokenProcessPool as error:
            raise DataError(
                "a process that checks images died, perhaps for want of memory; try fewer --workers "
                "(0 checks in this process)"
            ) from error


def _each(function: Callable[[Item], T], items: list[Item]) -> list[T]:
    return [function(item) for item in items]


def _initialise() -> None:
    """Leave Ctrl-C to the parent process, and end when the parent dies for any reason."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    warnings.simplefilter("ignore")  # Pillow warns of odd but readable images
    end_with_parent()

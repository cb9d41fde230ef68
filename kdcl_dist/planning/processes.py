"""Measurements in fresh processes, so that none inherits threads, memory or warm caches of another."""

from __future__ import annotations

import multiprocessing
import signal
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from kdcl_dist.errors import KdclError
from kdcl_dist.utils.process import end_with_parent, share_folder

__all__ = ["STEPS", "WARMUP_STEPS", "run_in_processes", "time_steps"]

Result = TypeVar("Result")

WARMUP_STEPS = 3
STEPS = 20
#: Seconds after which no further step of a measurement begins, and the steps that are timed in any case.
BUDGET_S = 10.0
MIN_STEPS = 5


def run_in_processes(work: Callable[..., Result], items: Sequence[tuple[Any, ...]]) -> list[Result]:
    """The results of `work` for each item; each runs in a process of its own, all at the same time.

    Raises:
        KdclError: a process died.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["kdcl_dist.student.runtime"])
    share_folder()
    with ProcessPoolExecutor(len(items), mp_context=context, initializer=_initialise) as pool:
        jobs = [pool.submit(work, *item) for item in items]
        try:
            # Without a limit: a network's steps may take any time, and somebody waits who can press Ctrl-C.
            return [job.result() for job in jobs]
        except BrokenProcessPool:
            raise KdclError(
                "a process that measures died; out of memory, or killed by hand", phase="measuring"
            ) from None


def _initialise() -> None:
    """Leave Ctrl-C to the parent process, and end when the parent dies for any reason."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()


def time_steps(step: Callable[[int], Result]) -> list[Result]:
    """The results of repeated steps, without those of the warm-up."""
    found: list[Result] = []
    began = time.perf_counter()
    for number in range(WARMUP_STEPS + STEPS):
        if len(found) >= MIN_STEPS + WARMUP_STEPS and time.perf_counter() - began > BUDGET_S:
            break
        found.append(step(number))
    return found[WARMUP_STEPS:]

"""How many cores this machine really gives: quotas, other load and shared units make it fewer than it has."""

from __future__ import annotations

import os
import time

import torch

from kdcl_dist.config.recipe import Recipe
from kdcl_dist.planning.processes import apart

__all__ = ["measure_cores"]

#: Seconds until all processes are surely there, and of each of the windows in which one or all compute.
HEAD_START_S = 2.0
WINDOW_S = 0.5
WINDOWS = 6
MOST_PROCESSES = 64


def measure_cores(recipe: Recipe) -> float:
    """What all can compute at once, as a multiple of what one can alone.

    As many processes compute as the cohort has threads on the CPU, or as there are cores where these are
    more; one alone and all at once by rounds.
    """
    threads = sum(s.replicas * s.resources.cpu for s in recipe.students if not s.resources.gpu)
    number = min(max(threads, len(os.sched_getaffinity(0))), MOST_PROCESSES)
    start = time.monotonic() + HEAD_START_S
    by_rank = apart(_work, [(rank, start) for rank in range(number)])
    alone = sum(by_rank[0][::2])
    together = sum(sum(rounds[1::2]) for rounds in by_rank)
    return min(max(together / max(alone, 1), 1.0), float(number))


def _work(rank: int, start: float) -> list[int]:
    """Products computed in each window: in the first, third, ... by rank 0 only, in the others by all."""
    torch.set_num_threads(1)
    matrix, done = torch.rand(128, 128), []
    for window in range(WINDOWS):
        time.sleep(max(0.0, start + window * WINDOW_S - time.monotonic()))
        end, products = start + (window + 1) * WINDOW_S, 0
        while (rank == 0 or window % 2) and time.monotonic() < end:
            torch.mm(matrix, matrix)
            products += 1
        done.append(products)
    return done

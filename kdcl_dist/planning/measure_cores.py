"""The effective number of cores of this machine: quotas, other load and shared units lower it."""

from __future__ import annotations

import os
import time

import torch

from kdcl_dist.config.recipe import Recipe
from kdcl_dist.planning.processes import run_in_processes

__all__ = ["measure_cores"]

#: Seconds for all processes to start, and seconds of each window in which one or all processes compute.
HEAD_START_S = 2.0
WINDOW_S = 0.5
WINDOWS = 6
MAX_PROCESSES = 64


def measure_cores(recipe: Recipe) -> float:
    """The work that all processes complete at once, as a multiple of the work of one process alone.

    The number of processes is the larger of the cohort's threads on the CPU and the number of cores. One
    process alone and all processes together compute in alternate windows.
    """
    on_cpu = [student for student in recipe.networks.values() if not student.resources.gpu_share(auto=0.0)]
    threads = sum(student.replicas * student.resources.cpu for student in on_cpu)
    number = min(max(threads, len(os.sched_getaffinity(0))), MAX_PROCESSES)
    start = time.monotonic() + HEAD_START_S
    by_rank = run_in_processes(_work, [(rank, start) for rank in range(number)])
    alone = sum(by_rank[0][::2])
    together = sum(sum(rounds[1::2]) for rounds in by_rank)
    return min(max(together / max(alone, 1), 1.0), float(number))


def _work(rank: int, start: float) -> list[int]:
    """Products computed in each window; in the first, third, ... only rank 0 computes, in the others all."""
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

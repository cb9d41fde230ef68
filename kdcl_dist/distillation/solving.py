"""Solves the samples of a batch for `linear` on the CPU, in several threads.

Numba is imported with the first batch, or by `prepare_solver`, and not with this file: most processes of a
run need none. A result depends on its sample alone, and not on the threads.

Shapes: S students, B batch, C classes.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from kdcl_dist.distillation.labels import is_mixed

__all__ = ["prepare_solver", "set_threads", "solve_linear"]

#: Logits of which a thread takes at least as many: fewer are done before another thread wakes.
LOGITS_OF_A_THREAD = 20_000
#: Threads where nothing else is set: more gain little, and other processes have their cores.
MOST_THREADS = 4


class Threads:
    """How many threads of this process solve a batch."""

    count = min(MOST_THREADS, len(os.sched_getaffinity(0)))


def set_threads(count: int | None) -> None:
    """Set how many threads of this process solve a batch; None: one for each core, at most `MOST_THREADS`."""
    Threads.count = count or min(MOST_THREADS, len(os.sched_getaffinity(0)))


def prepare_solver() -> None:
    """Compile the solver for float32, or read its machine code."""
    solve_linear(torch.empty(1, 0, 1), torch.empty(0, dtype=torch.int64))


def solve_linear(logits_SBC: Tensor, labels_B: Tensor) -> tuple[Tensor, Tensor]:
    """The combination of the students' logits with the smallest cross-entropy, and its weights.

    Where rounding makes a student's own cross-entropy the smaller one, its logits are taken.

    Args:
        logits_SBC: float32 or float64, on the CPU, without gradient.
        labels_B: the true classes, or class probabilities (B, C).

    Returns:
        logits_BC in the type of `logits_SBC`, and weights_SB, float64.
    """
    from kdcl_dist.distillation.machine_code import solver_of

    solve, (students, batch, classes) = solver_of(logits_SBC.dtype), logits_SBC.shape
    out_BC = logits_SBC.new_empty(batch, classes)
    weights_SB = torch.empty(students, batch, dtype=torch.float64)
    mixed = is_mixed(labels_B)
    arrays = (
        logits_SBC.contiguous().numpy(),
        np.zeros(batch, np.int64) if mixed else labels_B.contiguous().numpy(),
        labels_B.double().contiguous().numpy() if mixed else np.empty((batch, 0)),
        out_BC.numpy(),
        weights_SB.numpy(),
    )
    blocks = max(1, min(Threads.count, batch, logits_SBC.numel() // LOGITS_OF_A_THREAD))
    ends = [batch * block // blocks for block in range(blocks + 1)]
    others = [_pool().submit(solve, *arrays, *part) for part in pairwise(ends[1:])]
    solve(*arrays, 0, ends[1])
    for other in others:
        other.result()
    return out_BC, weights_SB


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(thread_name_prefix="linear-solver")

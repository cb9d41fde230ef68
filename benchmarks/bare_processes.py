"""A minimal script for torch's process launcher: the baseline of `startup` without Ray."""

from __future__ import annotations

import sys

import torch.distributed as dist
from torch.multiprocessing.spawn import spawn

from benchmarks.bare_training import MODELS, train


def _train(rank: int, store: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=len(MODELS))
    train(rank)
    dist.destroy_process_group()


if __name__ == "__main__":
    spawn(  # type: ignore[no-untyped-call]
        _train, (f"{sys.argv[1]}/store",), nprocs=len(MODELS)
    )

"""How a process of a run is set up: threads, memory, determinism and import paths."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch

from kdcl_dist.run.run import Run
from kdcl_dist.utils.process import keep_freed_memory

__all__ = ["prepare_process"]


def prepare_process(run: Run, threads: int) -> None:
    """Set this process's threads, memory, determinism, and the folders of import strings."""
    torch.set_num_threads(threads)
    keep_freed_memory()
    if run.recipe.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = not run.recipe.deterministic
    if Path(run.root).is_dir():
        os.chdir(run.root)
    if run.root not in sys.path:
        sys.path.insert(0, run.root)

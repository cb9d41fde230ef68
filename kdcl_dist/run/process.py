"""How a process of a run is set up: threads, memory, determinism and import paths."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch

from kdcl_dist.run.run import Run
from kdcl_dist.utils.objects import carry
from kdcl_dist.utils.process import keep_freed_memory

__all__ = ["prepare_process", "set_determinism", "use_root"]


def prepare_process(run: Run, threads: int) -> None:
    """Set threads, memory and determinism, the root of paths and import strings, and the run's objects."""
    torch.set_num_threads(threads)
    keep_freed_memory()
    set_determinism(run.recipe.deterministic)
    use_root(run.root)
    carry(run.objects)


def set_determinism(deterministic: bool) -> None:
    """Let torch use deterministic algorithms only, or the fastest ones."""
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = not deterministic


def use_root(root: str) -> None:
    """Look up relative paths and import strings in `root`, where that folder exists on this host.

    Args:
        root: the folder in which the user started the run.
    """
    if Path(root).is_dir():
        os.chdir(root)
    if root not in sys.path:
        sys.path.insert(0, root)

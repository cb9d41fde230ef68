"""The solver's machine code, before the limits of a run count."""

from __future__ import annotations

import fcntl
import os
import tempfile
from pathlib import Path

from kdcl_dist.distillation.solving import prepare_solver


def compile_solver() -> None:
    """Compile the solver, or read its code: one process compiles, while the others wait for it."""
    with Path(os.environ.get("NUMBA_CACHE_DIR", tempfile.gettempdir()), "solver").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        prepare_solver()

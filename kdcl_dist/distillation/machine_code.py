"""Compiles the solver of `linear` with numba, and keeps the machine code in a folder of the user's.

The first start on a machine compiles for seconds; later ones read the code. Numba looks at changes of one
file only, and its index of code is no place for several processors that share a folder. So the folder's name
depends on all that the code depends on: the files, numba's version, the processor and the logits' type.
Numba also keeps code apart by the path of its source, and each job on a cluster has a copy of its own. So the
source is compiled as if it lay in the folder. Files in it appear whole, so several processes may compile at
the same time.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import threading
import uuid
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import FunctionType
from typing import Any

import numba
import torch
from llvmlite import binding
from numba.core.registry import cpu_target

from kdcl_dist.distillation.linear import solve

__all__ = ["cache_folder", "solver_of"]

#: What the machine code is made of.
SOURCES = ("active_set.py", "kernels.py", "linear.py", "newton.py", "newton_of_two.py")
NUMBERS = {torch.float32: numba.float32, torch.float64: numba.float64}
#: One thread at a time compiles; others that need the same code wait for it.
_compiling = threading.Lock()

# Numba imports half of itself at its first compilation: here a server does it once, before it forks.
cpu_target.typing_context.refresh()
cpu_target.target_context.refresh()


def solver_of(kind: torch.dtype) -> Callable[..., None]:
    """The compiled `solve` for logits of float32 or float64; other threads run beside it."""
    with _compiling:
        return _compiled(kind)


@cache
def _compiled(kind: torch.dtype) -> Callable[..., None]:
    number, real = NUMBERS[kind], numba.float64
    kinds = number[:, :, ::1], numba.int64[::1], real[:, ::1], number[:, ::1], real[:, ::1]
    signature = numba.void(*kinds, numba.int64, numba.int64)
    folder, before = cache_folder(kind), numba.config.CACHE_DIR
    options: dict[str, Any] = {"nogil": True, "error_model": "numpy"}
    if folder is not None:
        try:
            numba.config.CACHE_DIR = str(folder)
            found: Callable[..., None] = numba.njit(signature, cache=True, **options)(_placed(folder))
            return found
        except Exception:  # a full disk, or a damaged file; the next start writes it anew
            shutil.rmtree(folder, ignore_errors=True)
        finally:
            numba.config.CACHE_DIR = before
    in_memory: Callable[..., None] = numba.njit(signature, **options)(solve)
    return in_memory


def _placed(folder: Path) -> Callable[..., None]:
    """`solve`, with a copy of its file in the folder for its source."""
    source = Path(solve.__code__.co_filename)
    copy = folder / source.name
    if not copy.exists():
        new = folder / f"{source.name}.{uuid.uuid4().hex}"
        new.write_bytes(source.read_bytes())
        new.replace(copy)
    return FunctionType(solve.__code__.replace(co_filename=str(copy)), solve.__globals__)


def cache_folder(kind: torch.dtype) -> Path | None:
    """The folder of the machine code, made if it is missing; None where this user cannot have one.

    It is below `NUMBA_CACHE_DIR`, else below `XDG_CACHE_HOME/kdcl` or `~/.cache/kdcl`.
    """
    cpu, features = numba.config.CPU_NAME, numba.config.CPU_FEATURES  # of NUMBA_CPU_NAME, mostly None
    host = binding.get_host_cpu_name(), binding.get_host_cpu_features().flatten()
    code = hashlib.sha256(f"{numba.__version__} {cpu} {features} {host} {kind}".encode())
    for name in SOURCES:
        code.update((Path(__file__).parent / name).read_bytes())
    try:
        folder = _root() / f"linear-{code.hexdigest()[:24]}"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.stat()
        # The code is read with pickle, so a folder that others own or can write to is not used.
        is_own = found.st_uid == os.getuid() and not found.st_mode & 0o022
        return folder if is_own and os.access(folder, os.W_OK) else None
    except (OSError, RuntimeError):
        return None


def _root() -> Path:
    if numba.config.CACHE_DIR:
        return Path(numba.config.CACHE_DIR)
    root = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(root) if Path(root).is_absolute() else Path("~/.cache").expanduser()) / "kdcl"

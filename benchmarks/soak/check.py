"""What a soak must find: other weights, lost accuracy, and what a run has left behind."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path

import torch

from kdcl_dist.run.checkpoint import latest, read_part
from kdcl_dist.run.record import read_record, scores_of
from kdcl_dist.run.storage import Folder

__all__ = ["accuracies", "differing_students", "leftovers"]


def differing_students(undisturbed: Folder, disturbed: Folder, names: list[str]) -> list[str]:
    """The students whose final parameters or buffers differ in any bit, or that one of the runs lacks."""
    ends = [(folder, latest(folder, print)) for folder in (undisturbed, disturbed)]
    if any(manifest is None for _, manifest in ends) or len({m.step for _, m in ends if m}) > 1:
        return names
    differ = []
    for name in names:
        one, other = (read_part(folder, m, name)["model"] for folder, m in ends if m)
        if one.keys() != other.keys() or any(not _same(one[key], other[key]) for key in one):
            differ.append(name)
    return differ


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.dtype == other.dtype and one.numpy().tobytes() == other.numpy().tobytes()


def accuracies(runs: Sequence[Folder], name: str) -> list[float]:
    """Test top-1 of a student, or of the ensemble, at the end of each run, in percent.

    Raises:
        KeyError: it was away at the end of a run.
    """
    return [100 * scores_of(read_record(run))[name]["top1"] for run in runs]


def leftovers(folder: Path, temporary: Path, pids: set[int]) -> list[str]:
    """Processes, shared memory, temporary and partial files of a soak's run that outlived it.

    Args:
        folder: of the soak; its path in a process's environment shows whose it is.
        temporary: its folder of temporary files.
        pids: of all processes of the run.
    """
    found = [f"process {pid}" for pid in _processes(f"KDCL_TEST_FAULTS={folder}/".encode())]
    found += [f"partial file {path}" for path in folder.rglob("*.tmp")]
    temporaries = [path for path in temporary.iterdir() if path.name != "ray"]  # the logs of Ray's sessions
    found += [f"temporary {path}" for path in temporaries]
    shared = [path for path in Path("/dev/shm").iterdir() if any(f"_{pid}_" in path.name for pid in pids)]
    return found + [f"shared memory {path}" for path in shared]


def _processes(mark: bytes) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):  # it has ended, or is another user's
            other = entry.name.isdigit() and int(entry.name) != os.getpid()
            if other and mark in (entry / "environ").read_bytes():
                found.append(int(entry.name))
    return found

"""What driver, coordinator and workers of a run on Ray have in common. It imports nothing heavy."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray

from kdcl_dist.run.run import Run
from kdcl_dist.utils.process import state_of

__all__ = ["END_S", "POLL_S", "actor_name", "at_this_host", "end_process", "end_stopped", "ping"]

#: Seconds between two polls.
POLL_S = 0.2
#: Seconds that the coordinator may take to answer, and to end after the students.
END_S = 20.0


def actor_name(run: Run) -> str:
    """The name by which workers and driver find the coordinator's actor."""
    return f"kdcl-coordinator-{run.id}"


def at_this_host(run: Run) -> Run:
    """The run with the root that it has on this host.

    Ray unpacks a job's working directory on every host, below Ray's temporary folder. The path is the root,
    that on the driver's host, except on a host with another temporary folder. A worker of such a job has its
    copy first on PYTHONPATH.
    """
    unpacked = os.environ.get("PYTHONPATH", "").split(os.pathsep)[0]
    if Path(run.root).is_dir() or not ray.get_runtime_context().runtime_env.get("working_dir"):
        return run
    return replace(run, root=unpacked)


def ping(worker: Any) -> None:
    """Runs in a worker, and shows by its answer that the worker lives."""


def end_process(worker: Any, pid: int) -> None:
    """Runs in a worker, and ends the process that the worker has started; 0 for none."""
    with suppress(ProcessLookupError):
        if pid:
            os.kill(pid, signal.SIGKILL)


def end_stopped(worker: Any, pid: int) -> None:
    """Runs in a worker, and ends a process of its host that another worker has left behind stopped."""
    if state_of(pid) == "T":
        end_process(worker, pid)

"""Starts of Ray on a busy machine."""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import ray
from ray.train.v2.api import data_parallel_trainer
from ray.train.v2.api.callback import RayTrainCallback

T = TypeVar("T")
#: How often a start is tried.
TRIES = 4


def start_ray(start: Callable[[], T]) -> T:
    """Call `start`, which starts nodes of Ray: Ray gives each 30 s, so no two tests start some at once.

    What frees the places of a dead controller asks the dashboard, and none of these clusters has one. It
    would only import for two seconds in each run.
    """
    data_parallel_trainer.PlacementGroupCleanerCallback = RayTrainCallback
    with Path(os.environ.get("NUMBA_CACHE_DIR", tempfile.gettempdir()), "starts-of-ray").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for _ in range(TRIES - 1):
            try:
                return start()
            except Exception as error:
                if "timed out during startup" not in str(error):
                    raise
        return start()


def own_ray(cpus: int, **more: Any) -> None:
    """Connect to a Ray of this machine that ends with `ray.shutdown`."""
    options = {"num_cpus": cpus, "include_dashboard": False, "log_to_driver": False} | more

    def start() -> None:
        ray.shutdown()  # what a try before has left
        ray.init(address="local", **options)

    start_ray(start)

"""Starts of Ray on a busy machine."""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest
import ray
from ray._private import utils
from ray._private.node import Node
from ray.experimental import internal_kv
from ray.train.v2.api import data_parallel_trainer
from ray.train.v2.api.callback import RayTrainCallback

T = TypeVar("T")
#: How often a start is tried.
TRIES = 4


def start_ray(start: Callable[[], T], *, metrics: bool = False) -> T:
    """Call `start`, which starts nodes of Ray: Ray gives each 30 s, so no two tests start some at once.

    Args:
        start: is called again where Ray has taken too long.
        metrics: whether the nodes offer their metrics.
    """
    # What frees the places of a dead controller asks the dashboard, and none of these clusters has one.
    data_parallel_trainer.PlacementGroupCleanerCallback = RayTrainCallback
    path = Path(os.environ.get("NUMBA_CACHE_DIR", tempfile.gettempdir()), "starts-of-ray")
    with path.open("w") as lock, _few_processes(metrics):
        fcntl.flock(lock, fcntl.LOCK_EX)
        for _ in range(TRIES - 1):
            try:
                return start()
            except Exception as error:
                if "timed out during startup" not in str(error):
                    raise
        return start()


@contextmanager
def _few_processes(metrics: bool) -> Iterator[None]:
    """Nodes that start in the block lack what no test asks, each a process that imports for a second or two.

    That is the dashboard's server, the autoscaler, what reads the logs, and most of each node's agent, as
    where Ray is installed without its dashboard.
    """
    with pytest.MonkeyPatch.context() as patch:
        for name in ("start_monitor", "start_log_monitor"):
            patch.setattr(Node, name, lambda node: None)
        # Whose start also connects this process to the new control store.
        connect = internal_kv._initialize_internal_kv
        patch.setattr(Node, "start_api_server", lambda node, **_: connect(node.get_gcs_client()))
        if not metrics:
            patch.setattr(utils, "get_dashboard_dependency_error", lambda: ImportError("left out by tests"))
        yield


def own_ray(cpus: int, *, metrics: bool = False, **more: Any) -> None:
    """Connect to a Ray of this machine that ends with `ray.shutdown`."""
    options = {"num_cpus": cpus, "include_dashboard": False, "log_to_driver": False} | more

    def start() -> None:
        ray.shutdown()  # what a try before has left
        ray.init(address="local", **options)

    start_ray(start, metrics=metrics)

"""A run on Ray Train: one worker for each student, and the coordinator as an actor beside them.

Ray places the processes and watches over them. The steps themselves do not pass through Ray: students and
coordinator form an exchange group of their own (`kdcl_dist.exchange.group`). The driver calls the actor only
to start it, to stop it, and for its events.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import ray

from kdcl_dist.config.recipe import Recipe
from kdcl_dist.errors import KdclError, RunFolderError
from kdcl_dist.launch.gpu_remarks import remarks_on_ray
from kdcl_dist.launch.preflight.checks import Check, require
from kdcl_dist.launch.preflight.placement import assign, needs_of, reserved
from kdcl_dist.launch.ray.assistants import start_assistants
from kdcl_dist.launch.ray.coordinator import start_coordinator
from kdcl_dist.launch.ray.preflight import hosts, run_checks
from kdcl_dist.launch.ray.private import address_of_cluster
from kdcl_dist.launch.ray.trainers import Trainers
from kdcl_dist.run.events import Event, Note, Warned
from kdcl_dist.run.run import Run
from kdcl_dist.run.storage import Folder

__all__ = ["check", "cluster", "launch", "max_concurrent_runs"]

#: Ray sets this variable for the command of a job.
JOB_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"


def launch(
    run: Run,
    on_event: Callable[[Event], None],
    stop_requested: threading.Event,
    save_requested: threading.Event | None = None,
) -> bool:
    """Train a run on the Ray cluster of RAY_ADDRESS, or of `ray start` on this machine, or on one of its own.

    Args, returns, raises: as `kdcl_dist.launch.local.launch`.
    """
    _check_storage_of_job(run)
    with cluster([run.recipe], on_event) as is_own:
        actors = [start_coordinator(run), *start_assistants(run)]
        try:
            found = _checks(run.recipe, run.folder, on_event, stop_requested=stop_requested)
            require(found, lambda text: on_event(Warned(text)))
            offered = hosts()
            needs = needs_of(run.recipe, offered)
            for remark in remarks_on_ray(run.recipe, needs, offered):
                on_event(remark)
            trainers = Trainers(run, actors[0], needs, on_event, stop_requested, save_requested, is_own)
            return trainers.fit()
        finally:
            for actor in actors:
                ray.kill(actor)


def _check_storage_of_job(run: Run) -> None:
    """Refuse a run folder in a job's copy of its working directory, where nobody else sees it."""
    folder = run.folder.local
    if JOB_VARIABLE in os.environ and folder is not None and folder.is_relative_to(run.root):
        raise RunFolderError(
            f"storage {str(folder.parent)!r} lies in this job's copy of its working directory, which goes "
            "with the job: give --storage an absolute path that all hosts share, or a URI"
        )


def check(recipe: Recipe, storage: Folder, on_event: Callable[[Event], None]) -> list[Check]:
    """All checks of `kdcl preflight`, rehearsals included, on the cluster where `launch` would train.

    Args:
        recipe: the run.
        storage: the folder that will hold it.
        on_event: called with each note.
    """
    with cluster([recipe], on_event):
        return _checks(recipe, storage, on_event, rehearse=True)


def _checks(
    recipe: Recipe,
    folder: Folder,
    on_event: Callable[[Event], None],
    *,
    rehearse: bool = False,
    stop_requested: threading.Event | None = None,
) -> list[Check]:
    def tell(text: str) -> None:
        on_event(Note(text))

    return run_checks(recipe, folder, tell, rehearse=rehearse, stop_requested=stop_requested)


@contextmanager
def cluster(recipes: Sequence[Recipe], on_event: Callable[[Event], None]) -> Iterator[bool]:
    """Join the cluster of RAY_ADDRESS, or of `ray start` on this machine, or start one that ends with this.

    A process that is connected already stays connected, and nothing is started. Yields whether the cluster
    was started: then it is this process's own, and its workers may share the cores of this machine.

    Args:
        recipes: the runs; a cluster that is started has CPUs for the largest of them.
        on_event: called with each note.

    Raises:
        KdclError: the cluster at RAY_ADDRESS does not answer.
    """
    if ray.is_initialized():
        yield False
        return
    is_own = _connect(recipes, on_event)
    try:
        yield is_own
    finally:
        ray.shutdown()


def max_concurrent_runs(recipe: Recipe) -> int:
    """For how many runs of a recipe the hosts of the connected cluster have room; at least 1."""
    offered = hosts()
    needs = reserved(recipe, offered)
    most = int(sum(host.cpu for host in offered) / sum(need.cpu for need in needs))
    runs = range(1, most + 1)
    return max(1, bisect_left(runs, True, key=lambda count: None in assign(needs * count, offered)))


def _connect(recipes: Sequence[Recipe], on_event: Callable[[Event], None]) -> bool:
    """Join a cluster, or start one; returns whether it was started."""
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    try:
        if found := address_of_cluster():
            _init(address=found, **options)
            return False
    except (ConnectionError, RuntimeError):  # the cluster has ended, or is about to
        ray.shutdown()
        if address := os.environ.get("RAY_ADDRESS"):
            raise KdclError(f"the Ray cluster at RAY_ADDRESS={address} does not answer") from None
    needed = max(int(sum(need.cpu for need in reserved(recipe))) for recipe in recipes)
    cores = os.cpu_count() or 1
    if needed > cores:
        on_event(
            Note(f"the students ask for {needed} CPU cores, this machine has {cores}: they will share them")
        )
    _init(address="local", num_cpus=max(needed, cores), include_dashboard=False, **options)
    return True


def _init(**options: Any) -> None:
    """Call `ray.init`, and set the handler of SIGTERM again that `ray.init` replaces.

    The handler takes a checkpoint; `ray job stop`, Slurm and Kubernetes send SIGTERM.
    """
    if threading.current_thread() is not threading.main_thread():
        ray.init(**options)
        return
    handler = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(**options)
    finally:
        signal.signal(signal.SIGTERM, handler)

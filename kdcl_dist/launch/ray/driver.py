"""A run on Ray Train: one worker a student, and the coordinator an actor beside them.

Ray places the processes and watches over them. The steps themselves do not pass through it: students
and coordinator form an exchange group of their own (`kdcl_dist.exchange.group`), and the actor is called only
to start, to stop, and to hear what happens.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import ray
from ray._private import services
from ray.exceptions import RayError
from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from kdcl_dist.config.recipe import Recipe
from kdcl_dist.errors import CoordinatorLost, KdclError, RunFolderError, StudentLost, from_dict, one_line
from kdcl_dist.launch.preflight.checks import Check, require
from kdcl_dist.launch.preflight.placement import ACCELERATOR
from kdcl_dist.launch.ray.common import POLL_S, actor_name
from kdcl_dist.launch.ray.coordinator import END_S, EventCursor, start_coordinator
from kdcl_dist.launch.ray.preflight import run_checks
from kdcl_dist.launch.ray.worker import CohortConfig, train
from kdcl_dist.run.events import Event, Note, Warned
from kdcl_dist.run.record import read_record, recorded_failure
from kdcl_dist.run.run import Run
from kdcl_dist.run.storage import Folder

__all__ = ["check", "cluster", "launch", "room_for"]

#: Ray sets it for the command of a job.
JOB_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"
#: Failures of workers that Ray Train lets pass for each failure of the recipe.
RETRIES = 4


def launch(run: Run, on_event: Callable[[Event], None], asked: threading.Event) -> bool:
    """Train a run on the Ray cluster of RAY_ADDRESS, or of `ray start` on this machine, or on one of its own.

    Args, returns, raises: as `kdcl_dist.launch.local.launch`.
    """
    _check_storage_of_job(run)
    with cluster([run.recipe], on_event):
        coordinator = start_coordinator(run)
        try:
            require(_checks(run.recipe, run.folder, on_event), lambda text: on_event(Warned(text)))
            return _Watcher(run, on_event, asked).fit()
        finally:
            ray.kill(coordinator)


def _check_storage_of_job(run: Run) -> None:
    """Refuse a run folder in a job's copy of its working directory, where nobody else sees it."""
    folder = run.folder.local
    if JOB_VARIABLE in os.environ and folder is not None and folder.is_relative_to(run.root):
        raise RunFolderError(
            f"storage {str(folder.parent)!r} lies in this job's copy of its working directory, which goes "
            "with the job: give --storage an absolute path that all hosts share, or a URI"
        )


def check(recipe: Recipe, storage: Folder, on_event: Callable[[Event], None]) -> list[Check]:
    """All checks of `kdcl preflight` on the cluster where `launch` would train.

    Args:
        recipe: the run.
        storage: the folder that will hold it.
        on_event: hears what happens.
    """
    with cluster([recipe], on_event):
        return _checks(recipe, storage, on_event)


def _checks(recipe: Recipe, folder: Folder, on_event: Callable[[Event], None]) -> list[Check]:
    return run_checks(recipe, folder, lambda text: on_event(Note(text)))


@contextmanager
def cluster(recipes: Sequence[Recipe], on_event: Callable[[Event], None]) -> Iterator[None]:
    """Join the cluster of RAY_ADDRESS, or of `ray start` on this machine, or start one that ends with this.

    A process that is connected already stays as it is. Raises `KdclError` when RAY_ADDRESS does not answer.
    """
    if ray.is_initialized():
        yield
        return
    _connect(recipes, on_event)
    try:
        yield
    finally:
        ray.shutdown()


def room_for(recipe: Recipe) -> int:
    """How many cohorts of a recipe the connected cluster has CPUs and GPUs for; at least 1."""
    offered, needed = ray.cluster_resources(), _taken_by(recipe)
    return max(1, min(int(offered.get(name, 0) // count) for name, count in needed.items() if count))


def _taken_by(recipe: Recipe) -> dict[str, float]:
    """CPUs and GPUs of a whole cohort: Ray Train gives every worker as much as the largest needs."""
    students, workers = recipe.students, len(recipe.workers)
    return {
        "CPU": workers * max(student.resources.cpu for student in students),
        "GPU": workers * max(student.resources.gpu for student in students),
    }


def _connect(recipes: Sequence[Recipe], on_event: Callable[[Event], None]) -> None:
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    try:
        # Of RAY_ADDRESS or `ray start`. "auto" would join what another program has for itself, too.
        if found := services.get_ray_address_from_environment(None, None):
            _init(address=found, **options)
            return
    except (ConnectionError, RuntimeError):  # it has ended, or is about to
        ray.shutdown()
        if address := os.environ.get("RAY_ADDRESS"):
            raise KdclError(f"the Ray cluster at RAY_ADDRESS={address} does not answer") from None
    needed = max(int(_taken_by(recipe)["CPU"]) for recipe in recipes)
    cores = os.cpu_count() or 1
    if needed > cores:
        on_event(
            Note(f"the students ask for {needed} CPU cores, this machine has {cores}: they will share them")
        )
    _init(address="local", num_cpus=max(needed, cores), include_dashboard=False, **options)


def _init(**options: Any) -> None:
    """`ray.init`, which puts a handler of its own in the place of ours that takes a checkpoint on SIGTERM.

    SIGTERM is what `ray job stop` sends, and Slurm and Kubernetes too.
    """
    if threading.current_thread() is not threading.main_thread():
        ray.init(**options)
        return
    handler = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(**options)
    finally:
        signal.signal(signal.SIGTERM, handler)


class _Watcher:
    """The driver's side: runs the trainer in a thread, passes events on, and forwards a stop."""

    def __init__(self, run: Run, on_event: Callable[[Event], None], asked: threading.Event) -> None:
        self.run, self.on_event, self.asked = run, on_event, asked
        self.error: BaseException | None = None
        self.cursor = EventCursor()
        self.forwarded = False

    def fit(self) -> bool:
        """Train; see `launch`."""
        thread = threading.Thread(target=self._fit, name="kdcl-trainer", daemon=True)
        thread.start()
        while thread.is_alive():
            self._look()
            thread.join(POLL_S)
        self._look()
        if self.error is not None:
            raise _cause(self.error, self.run)
        if (noted := recorded_failure(self.run)) is not None:
            raise noted
        return self._outcome()

    def _fit(self) -> None:
        try:
            trainer(self.run).fit()
        except BaseException as error:  # handed to the main thread, which raises it
            self.error = error

    def _look(self) -> None:
        """Hear the coordinator's events, if it is there yet or still."""
        try:
            actor = ray.get_actor(actor_name(self.run))
            if self.asked.is_set():  # said at each look: the actor may be another by now
                ray.get(actor.stop.remote(), timeout=END_S)
                self.forwarded = True
            self.cursor, events = ray.get(actor.events.remote(self.cursor), timeout=END_S)
        except (ValueError, RayError):
            return
        for event in events:
            self.on_event(event)

    def _outcome(self) -> bool:
        """How the run ended, by the coordinator's own word: the storage may not have taken the record."""
        found = None
        with suppress(ValueError, RayError, TimeoutError):
            found = ray.get(ray.get_actor(actor_name(self.run)).how_it_ended.remote(), timeout=END_S)
        if isinstance(found, dict):
            raise from_dict(found)
        state = {"finished": True, "interrupted": False}.get(read_record(self.run.folder).get("state", ""))
        if found is None and state is None:
            raise CoordinatorLost(
                "all workers have ended, and the coordinator does not say how; use --resume"
            )
        return bool(state if found is None else found)


def trainer(run: Run) -> TorchTrainer:
    """Ray Train's trainer for a run."""
    students = run.recipe.students
    resources: dict[str, float] = {"CPU": max(student.resources.cpu for student in students)}
    if gpu := max(student.resources.gpu for student in students):
        resources["GPU"] = gpu
    wanted = [students[worker.student].accelerator for worker in run.recipe.workers]
    selectors = [{ACCELERATOR: accelerator} if accelerator else {} for accelerator in wanted]
    return TorchTrainer(
        train,
        train_loop_config={"run": run},
        torch_config=CohortConfig(run),
        scaling_config=ScalingConfig(
            num_workers=len(wanted),
            use_gpu=gpu > 0,
            resources_per_worker=resources,
            label_selector=selectors if any(selectors) else None,
        ),
        run_config=RunConfig(
            name="ray",
            storage_path=run.folder.uri,
            # The coordinator decides when a run ends. Ray counts every worker of a failure, and each failed
            # start of a new one; its limit is there for what the coordinator cannot see.
            failure_config=FailureConfig(max_failures=RETRIES * run.recipe.failure.max_failures),
            logging_config=LoggingConfig(log_level="ERROR"),
        ),
    )


def _cause(error: BaseException, run: Run) -> KdclError:
    """The first failure of a run: what the coordinator noted, else what Ray Train saw of the workers."""
    if (noted := recorded_failure(run)) is not None:
        return noted
    failures = getattr(error, "worker_failures", {})
    reported = [failure for failure in failures.values() if isinstance(failure, KdclError)]
    if reported:
        return next((e for e in reported if not isinstance(e, (StudentLost, CoordinatorLost))), reported[0])
    if failures:
        rank, failure = next(iter(failures.items()))
        return StudentLost(f"the worker of rank {rank} died: {one_line(failure)}", detail=str(failure))
    return KdclError(f"Ray Train failed: {one_line(error)}", detail=str(error))

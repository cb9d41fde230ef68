"""A run on Ray Train: one worker for each student, and the coordinator as an actor beside them.

Ray places the processes and watches over them. The steps themselves do not pass through Ray: students and
coordinator form an exchange group of their own (`kdcl_dist.exchange.group`). The driver calls the actor only
to start it, to stop it, and for its events.
"""

from __future__ import annotations

import logging
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError
from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from kdcl_dist.config.recipe import Recipe
from kdcl_dist.errors import CoordinatorLost, KdclError, RunFolderError, from_dict, one_line
from kdcl_dist.launch.devices import devices_on_ray
from kdcl_dist.launch.failures import first_worker_failure
from kdcl_dist.launch.gpu_remarks import remarks_on_ray, unusable_gpus
from kdcl_dist.launch.preflight.checks import Check, require
from kdcl_dist.launch.preflight.placement import Need, needs_of
from kdcl_dist.launch.ray.common import END_S, POLL_S, actor_name
from kdcl_dist.launch.ray.coordinator import EventCursor, start_coordinator
from kdcl_dist.launch.ray.coordinator_output import CoordinatorOutput
from kdcl_dist.launch.ray.preflight import hosts, run_checks
from kdcl_dist.launch.ray.private import address_of_cluster, spare_data_sets
from kdcl_dist.launch.ray.worker import CohortConfig, train
from kdcl_dist.run.events import Event, Note, Started, Warned
from kdcl_dist.run.record import recorded_end, recorded_failure
from kdcl_dist.run.run import Run
from kdcl_dist.run.storage import Folder

__all__ = ["check", "cluster", "launch", "max_concurrent_runs"]

#: Ray sets this variable for the command of a job.
JOB_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"
#: Seconds that Ray Train may take to end after the run; its controller may hang.
LEAVE_S = 180.0
#: Failures of workers that Ray Train allows for each failure that the recipe allows.
WORKER_FAILURES = 4


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
    with cluster([run.recipe], on_event):
        coordinator = start_coordinator(run)
        try:
            require(_checks(run.recipe, run.folder, on_event), lambda text: on_event(Warned(text)))
            offered = hosts()
            needs = needs_of(run.recipe, offered)
            for remark in remarks_on_ray(run.recipe, needs[0].gpu, offered):
                on_event(remark)
            return _TrainerThread(run, needs, on_event, stop_requested, save_requested).fit()
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
    """All checks of `kdcl preflight`, rehearsals included, on the cluster where `launch` would train.

    Args:
        recipe: the run.
        storage: the folder that will hold it.
        on_event: called with each note.
    """
    with cluster([recipe], on_event):
        return _checks(recipe, storage, on_event, rehearse=True)


def _checks(
    recipe: Recipe, folder: Folder, on_event: Callable[[Event], None], *, rehearse: bool = False
) -> list[Check]:
    return run_checks(recipe, folder, lambda text: on_event(Note(text)), rehearse=rehearse)


@contextmanager
def cluster(recipes: Sequence[Recipe], on_event: Callable[[Event], None]) -> Iterator[None]:
    """Join the cluster of RAY_ADDRESS, or of `ray start` on this machine, or start one that ends with this.

    A process that is connected already stays connected, and nothing is started.

    Args:
        recipes: the runs; a cluster that is started has CPUs for the largest of them.
        on_event: called with each note.

    Raises:
        KdclError: the cluster at RAY_ADDRESS does not answer.
    """
    if ray.is_initialized():
        yield
        return
    _connect(recipes, on_event)
    try:
        yield
    finally:
        ray.shutdown()


def max_concurrent_runs(recipe: Recipe) -> int:
    """For how many runs of a recipe the connected cluster has CPUs and GPUs; at least 1."""
    offered, needs = ray.cluster_resources(), needs_of(recipe, hosts())
    needed = {name: len(needs) * count for name, count in needs[0].resources.items()}
    return max(1, min(int(offered.get(name, 0) // count) for name, count in needed.items()))


def _connect(recipes: Sequence[Recipe], on_event: Callable[[Event], None]) -> None:
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    try:
        if found := address_of_cluster():
            _init(address=found, **options)
            return
    except (ConnectionError, RuntimeError):  # the cluster has ended, or is about to
        ray.shutdown()
        if address := os.environ.get("RAY_ADDRESS"):
            raise KdclError(f"the Ray cluster at RAY_ADDRESS={address} does not answer") from None
    needed = max(int(sum(need.cpu for need in needs_of(recipe))) for recipe in recipes)
    cores = os.cpu_count() or 1
    if needed > cores:
        on_event(
            Note(f"the students ask for {needed} CPU cores, this machine has {cores}: they will share them")
        )
    _init(address="local", num_cpus=max(needed, cores), include_dashboard=False, **options)


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


class _TrainerThread:
    """Runs Ray Train's trainer in a thread, and meanwhile passes on the events and a request to stop.

    Attributes:
        error: that of the trainer.
        leave_at: from when on, by the monotonic clock, the trainer is not waited for, since the run is over.
    """

    def __init__(
        self,
        run: Run,
        needs: Sequence[Need],
        on_event: Callable[[Event], None],
        stop_requested: threading.Event,
        save_requested: threading.Event | None = None,
    ) -> None:
        self.run, self.needs, self.on_event = run, needs, on_event
        self.stop_requested, self.save_requested = stop_requested, save_requested or threading.Event()
        self.devices = devices_on_ray(run.recipe, needs[0].gpu)
        self.error: BaseException | None = None
        self.cursor, self.leave_at = EventCursor(), math.inf
        self.output = CoordinatorOutput(run)

    def fit(self) -> bool:
        """Train; see `launch`."""
        try:
            self._run_trainers()
        finally:
            self.output.close()
        failure = recorded_failure(self.run)
        if failure is None and self.error is not None:
            if (end := recorded_end(self.run)) is not None:
                return end  # what failed came after it
            failure = _trainer_failure(self.error)
        if failure is not None:
            raise failure
        return self._outcome()

    def _run_trainers(self) -> None:
        """Run a trainer to its end, and another where its controller dies."""
        self._run_trainer()
        for _ in range(self.run.recipe.failure.allowed):
            if not isinstance(self.error, RayActorError) or recorded_end(self.run) is not None:
                break
            self.on_event(Note("the controller of Ray Train died; another starts the workers again"))
            self._run_trainer()

    def _run_trainer(self) -> None:
        """Run a trainer to its end, or for a while after that of the run."""
        self.error = None
        thread = threading.Thread(target=self._fit, name="kdcl-trainer", daemon=True)
        thread.start()
        while thread.is_alive() and time.monotonic() < self.leave_at:
            self._poll()
            thread.join(POLL_S)
        self._poll()

    def _fit(self) -> None:
        try:
            trainer = _trainer(self.run, self.needs, self.devices)
            spare_data_sets(trainer)
            trainer.fit()
        except BaseException as error:  # handed to the main thread, which raises it
            self.error = error

    def _poll(self) -> None:
        """Pass on the coordinator's new events, if the actor lives."""
        try:
            actor = ray.get_actor(actor_name(self.run))
            self._forward_requests(actor)
            self.cursor, events = ray.get(actor.events.remote(self.cursor), timeout=END_S)
            is_over = ray.get(actor.is_over.remote(0.0), timeout=END_S)
            self.output.follow(self.cursor.coordinator, actor)
        except (ValueError, RayError):
            return
        for event in events:
            self.on_event(event)
            if isinstance(event, Started):
                for warning in unusable_gpus(self.run.recipe, self.devices, event):
                    self.on_event(warning)
        if is_over:
            self.leave_at = min(self.leave_at, time.monotonic() + LEAVE_S)

    def _forward_requests(self, actor: Any) -> None:
        if self.stop_requested.is_set():  # repeated, since Ray may have restarted the actor
            has_begun = ray.get(actor.stop.remote(), timeout=END_S)
            if not has_begun:  # nothing is trained, and the workers may wait for resources for long
                raise KeyboardInterrupt
        if self.save_requested.is_set():
            ray.get(actor.save.remote(), timeout=END_S)
            self.save_requested.clear()

    def _outcome(self) -> bool:
        """How the run ended: the coordinator's answer, since the storage may not have taken the record."""
        found = None
        with suppress(ValueError, RayError, TimeoutError):
            found = ray.get(ray.get_actor(actor_name(self.run)).await_outcome.remote(), timeout=END_S)
        if isinstance(found, dict):
            raise from_dict(found)
        end = recorded_end(self.run) if found is None else bool(found)
        if end is None:
            raise CoordinatorLost(
                "all workers have ended, and the coordinator does not say how; use --resume"
            )
        return end


def _trainer(run: Run, needs: Sequence[Need], devices: Sequence[str]) -> TorchTrainer:
    """Ray Train's trainer for a run, with the needs and the device of each of the cohort's workers."""
    selectors = [need.label_selector for need in needs]
    return TorchTrainer(
        train,
        train_loop_config={"run": run, "devices": devices},
        torch_config=CohortConfig(run.for_coordinator()),
        scaling_config=ScalingConfig(
            num_workers=len(needs),
            use_gpu=needs[0].gpu > 0,
            resources_per_worker=needs[0].resources,
            label_selector=selectors if any(selectors) else None,
        ),
        run_config=RunConfig(
            name="ray",
            storage_path=run.folder.uri,
            # The coordinator decides when a run ends. Ray counts every worker of a failure, and each failed
            # start of a new worker. Ray's limit is for failures that the coordinator cannot see.
            failure_config=FailureConfig(max_failures=WORKER_FAILURES * run.recipe.failure.max_failures),
            logging_config=LoggingConfig(log_level="ERROR"),
        ),
    )


def _trainer_failure(error: BaseException) -> KdclError:
    """The failure behind an error of Ray Train: one of the workers', else the error itself."""
    if isinstance(error, RayActorError):
        return KdclError(
            "the controller of Ray Train died; out of memory, or killed by hand? --resume goes on",
            detail=str(error),
        )
    failure = first_worker_failure(getattr(error, "worker_failures", {}))
    return failure or KdclError(f"Ray Train failed: {one_line(error)}", detail=str(error))

"""The trainers of a run on Ray Train, each in a thread, which the driver watches.

Ray Train gives all workers of a trainer the same resources. So there is one trainer for each kind of workers;
all workers meet at the one coordinator. Those that join later have no trainer: see `newcomers`.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError
from ray.train import ControllerError, FailureConfig, LoggingConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from kdcl_dist.errors import CoordinatorLost, KdclError, from_dict, one_line
from kdcl_dist.launch.devices import devices_on_ray
from kdcl_dist.launch.failures import first_worker_failure
from kdcl_dist.launch.gpu_remarks import unusable_gpus
from kdcl_dist.launch.messages import CohortAsked
from kdcl_dist.launch.preflight.placement import Need, kinds_of, spares_in_words, with_spares
from kdcl_dist.launch.ray.common import END_S, POLL_S, actor_name
from kdcl_dist.launch.ray.coordinator import EventCursor, Progress
from kdcl_dist.launch.ray.head import Head
from kdcl_dist.launch.ray.newcomers import Joined
from kdcl_dist.launch.ray.private import spare_data_sets
from kdcl_dist.launch.ray.room import await_room, turn
from kdcl_dist.launch.ray.worker import CohortConfig, train
from kdcl_dist.run.events import Event, Note, Started, Warned
from kdcl_dist.run.record import recorded_end, recorded_failure
from kdcl_dist.run.run import Run

__all__ = ["Trainers"]

#: Seconds that Ray Train may take to end after the run; its controller may hang.
LEAVE_S = 180.0
#: The same while the head is away, without which Ray Train does not end.
HEADLESS_S = 5.0
#: Failures of workers that Ray Train allows for each failure that the recipe allows.
WORKER_FAILURES = 4


class Trainers:
    """Runs the trainers, and meanwhile passes on the events and a request to stop.

    Attributes:
        trainers: one for each kind of workers, in the order in which the kinds take their places.
        restarts: how many trainers may still be started again after they have ended; see `_start_again`.
        progress: of the run, as far as the coordinator has told.
        leave_at: from when on, by the monotonic clock, no trainer is waited for.
        joined: the workers that join while the others train.
        head_is_lost: whether the run ends since the head of the cluster is away for too long.
        outcome: the coordinator's answer at the end; see `CoordinatorActor`.
    """

    def __init__(
        self,
        run: Run,
        actor: Any,
        needs: Sequence[Need],
        on_event: Callable[[Event], None],
        stop_requested: threading.Event,
        save_requested: threading.Event | None = None,
        shares_cores: bool = False,
    ) -> None:
        self.run, self.actor, self.on_event = run, actor, on_event
        self.needs = with_spares(run.recipe, needs)
        self.stop_requested, self.save_requested = stop_requested, save_requested or threading.Event()
        self.devices = devices_on_ray(run.recipe, needs)
        self.trainers = [
            _Trainer(lambda kind=kind: _trainer(run, self.needs, self.devices, kind))  # type: ignore[misc]
            for kind in range(len(kinds_of(self.needs)))
        ]
        self.restarts = run.recipe.failure.allowed
        self.cursor, self.progress, self.leave_at = EventCursor(), Progress(), math.inf
        self.outcome: bool | dict[str, Any] | None = None
        self.head, self.head_is_lost = Head(), False
        self.joined = Joined(run, self.needs, self.head, on_event, shares_cores)

    def fit(self) -> bool:
        """Train; see `kdcl_dist.launch.ray.driver.launch`."""
        try:
            self._place()
            while self._go_on():
                self._watch()
            self._conclude()
            errors = self._failures()
        finally:
            self.joined.close()
        failure = recorded_failure(self.run)
        if failure is None and errors and not isinstance(self.outcome, dict):
            if (end := recorded_end(self.run)) is not None:
                return end  # what failed came after it
            failure = _first_failure(errors)
        if failure is not None:
            raise failure
        return self._end()

    # -- start ----------------------------------------------------------------------------------------

    def _place(self) -> None:
        """Start the trainers; several one after another, in a moment when there is room for all workers."""
        if spares := spares_in_words(self.needs):
            self.on_event(Note(spares))
        if len(self.trainers) == 1:
            self.trainers[0].start()
            return
        self.on_event(Note(f"on Ray, as soon as there is room for all: {self._reserved()}"))
        with turn(self._watch):
            await_room(self.needs, self._watch)
            for kind, trainer in enumerate(self.trainers):
                trainer.start()
                while kind not in self.progress.kinds and self._go_on():
                    self._watch()

    def _reserved(self) -> str:
        """What each kind of workers reserves."""
        parts, workers = [], self.run.recipe.workers
        for kind in kinds_of(self.needs):
            names = ["a spare" if self.needs[index].is_spare else workers[index].name for index in kind]
            parts.append(f"{replace(self.needs[kind[0]], accelerator=None)} for {', '.join(names)}")
        return "; ".join(parts)

    # -- watch ----------------------------------------------------------------------------------------

    def _go_on(self) -> bool:
        """Whether a trainer works that is worth waiting for."""
        if self._start_again():
            return True
        if not self.progress.has_begun and any(trainer.failure for trainer in self.trainers):
            return False  # the coordinator waits for workers that do not come
        works = self.joined.works or any(trainer.works for trainer in self.trainers)
        return works and time.monotonic() < self.leave_at

    def _start_again(self) -> bool:
        """Start a trainer again that death ended, not a failure of its workers; whether there is one."""
        ended = next(((each, why) for each in self.trainers if (why := _death(each.failure))), None)
        if ended is None or not self.restarts or recorded_end(self.run) is not None:
            return False
        trainer, why = ended
        self.restarts -= 1
        self.on_event(Note(f"{why}; another starts the workers again"))
        trainer.start()
        return True

    def _watch(self) -> None:
        """Wait a moment, and pass on what came meanwhile."""
        trainer = next((trainer for trainer in self.trainers if trainer.works), None)
        trainer.thread.join(POLL_S) if trainer else time.sleep(POLL_S)
        self._poll()
        if not self.progress.is_over:
            self.joined.care()
        if not self.head_is_lost and self.head.is_lost():
            self.head_is_lost = True
            if not self.progress.is_over:
                self.on_event(Warned(f"{self._head_lost()}; the run takes a checkpoint and ends"))

    def _head_lost(self) -> str:
        return f"the head of the Ray cluster, {self.head.address}, is away for {self.head.limit_s:g} s"

    def _poll(self) -> None:
        """Pass on the coordinator's new events, if the actor lives."""
        try:
            self._forward_requests()
            self.progress = ray.get(self.actor.progress.remote(), timeout=END_S)
            # Last: events that the cursor has passed are lost unless they are passed on.
            self.cursor, events = ray.get(self.actor.events.remote(self.cursor), timeout=END_S)
        except RayError as error:
            if isinstance(error, RayActorError) and self._actor_is_gone():  # the workers notice in that time
                self._leave_within(self.run.recipe.limits.startup_s + LEAVE_S)
            return
        for event in events:
            if isinstance(event, CohortAsked):
                self.joined.admit(event)
                continue
            self.on_event(event)
            if isinstance(event, Started):
                for warning in unusable_gpus(self.run.recipe, self.devices, event):
                    self.on_event(warning)
        if self.progress.is_over:
            self._leave_within(self._patience_s())

    def _actor_is_gone(self) -> bool:
        """Whether the coordinator's actor is dead for good; the head knows."""
        try:
            ray.get_actor(actor_name(self.run))
        except ValueError:
            return True
        except RayError:  # the head does not answer
            pass
        return False

    def _patience_s(self) -> float:
        """Seconds that trainers have to end by themselves after the run."""
        if not self.progress.has_begun:
            return 0.0
        return HEADLESS_S if self.head.is_away else LEAVE_S

    def _leave_within(self, limit_s: float) -> None:
        self.leave_at = min(self.leave_at, time.monotonic() + limit_s)

    def _forward_requests(self) -> None:
        if self.head_is_lost or self.stop_requested.is_set():  # repeated: Ray may have restarted the actor
            has_begun = ray.get(self.actor.stop.remote(), timeout=END_S)
            if not has_begun:  # nothing is trained, and the workers may wait for resources for long
                raise KdclError(self._head_lost()) if self.head_is_lost else KeyboardInterrupt
        if self.save_requested.is_set():
            ray.get(self.actor.save.remote(), timeout=END_S)
            self.save_requested.clear()

    # -- end ------------------------------------------------------------------------------------------

    def _failures(self) -> list[BaseException]:
        """The failures of trainers, and of workers that have joined."""
        own = [trainer.failure for trainer in self.trainers if trainer.failure is not None]
        return [*own, *self.joined.failures]

    def _conclude(self) -> None:
        """Wait until the coordinator has finished its record, and pass on its last events."""
        with suppress(RayError):
            self.outcome = ray.get(self.actor.await_outcome.remote(), timeout=END_S)
        self._poll()

    def _end(self) -> bool:
        """How the run ended: the coordinator's answer, since the storage may not have taken the record."""
        if isinstance(self.outcome, dict):
            raise from_dict(self.outcome)
        end = recorded_end(self.run) if self.outcome is None else self.outcome
        if self.head_is_lost and not end:
            raise KdclError(f"{self._head_lost()}; start the cluster again, and use --resume")
        if end is None:
            raise CoordinatorLost(
                "all workers have ended, and the coordinator does not say how; use --resume"
            )
        return end


class _Trainer:
    """A trainer in a thread."""

    def __init__(self, make: Callable[[], TorchTrainer]) -> None:
        self.make, self.thread = make, threading.Thread()
        self.error: BaseException | None = None

    @property
    def works(self) -> bool:
        """Whether the trainer has been started and has not ended."""
        return self.thread.is_alive()

    @property
    def failure(self) -> BaseException | None:
        """The error with which the trainer has ended; None while it works."""
        return None if self.works else self.error

    def start(self) -> None:
        """Start the trainer, or another in place of one that has ended."""
        self.error = None
        self.thread = threading.Thread(target=self._fit, name="kdcl-trainer", daemon=True)
        self.thread.start()

    def _fit(self) -> None:
        try:
            trainer = self.make()
            spare_data_sets(trainer)
            trainer.fit()
        except BaseException as error:  # handed to the main thread, which raises it
            self.error = error


def _trainer(run: Run, needs: Sequence[Need], devices: Sequence[str], kind: int) -> TorchTrainer:
    """Ray Train's trainer of one kind of workers.

    Args:
        run: the run.
        needs, devices: of each of the cohort's workers; the needs also of its spares.
        kind: its number in `kinds_of(needs)`.
    """
    kinds = kinds_of(needs)
    of_kind = [needs[index] for index in kinds[kind]]
    selectors = [need.label_selector for need in of_kind]
    return TorchTrainer(
        train,
        train_loop_config={"run": run, "devices": devices, "kind": kind},
        torch_config=CohortConfig(run.for_coordinator(), kind, kinds[kind], needs),
        scaling_config=ScalingConfig(
            num_workers=len(of_kind),
            use_gpu=of_kind[0].gpu > 0,
            resources_per_worker=of_kind[0].resources,
            label_selector=selectors if any(selectors) else None,
            # A spare on the host of a student would die with it.
            placement_strategy="SPREAD" if run.recipe.failure.spares else "PACK",
        ),
        run_config=RunConfig(
            name="ray" if len(kinds) == 1 else f"ray/{kind}",
            storage_path=run.folder.uri,
            # The coordinator decides when a run ends. Ray counts every worker of a failure, and each failed
            # start of a new worker. Ray's limit is for failures that the coordinator cannot see.
            failure_config=FailureConfig(max_failures=WORKER_FAILURES * run.recipe.failure.max_failures),
            logging_config=LoggingConfig(log_level="ERROR"),
        ),
    )


def _death(failure: BaseException | None) -> str | None:
    """Whose death has ended a trainer; None where that is not why it has ended.

    Ray Train replaces one dead worker at a time, and fails to where another one is dead meanwhile.
    """
    if isinstance(failure, RayActorError):
        return "the controller of Ray Train died"
    if isinstance(failure, ControllerError) and isinstance(failure.controller_failure, RayActorError):
        return "several workers of Ray died at once, and its controller ended"
    return None


def _first_failure(errors: Sequence[BaseException]) -> KdclError:
    """The failure behind errors of Ray Train: one of the workers', else the first error itself."""
    found = [
        error if isinstance(error, KdclError) else first_worker_failure(getattr(error, "worker_failures", {}))
        for error in errors
    ]
    if reported := first_worker_failure({rank: error for rank, error in enumerate(found) if error}):
        return reported
    if (why := _death(errors[0])) is not None:
        remedy = "out of memory, or killed by hand? --resume goes on"
        return KdclError(f"{why}; {remedy}", detail=str(errors[0]))
    return KdclError(f"Ray Train failed: {one_line(errors[0])}", detail=str(errors[0]))

"""A student's place in the cohort: through one generation of its exchange group after another."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict, replace

import torch

from kdcl_dist.config.rounds import Round
from kdcl_dist.config.student import Worker
from kdcl_dist.data.training_data import TrainingData
from kdcl_dist.errors import CoordinatorLost, KdclError, NonFiniteLogits, from_dict, wrap
from kdcl_dist.exchange.group import Exchange
from kdcl_dist.exchange.layout import ExchangeLayout
from kdcl_dist.exchange.message import Flag
from kdcl_dist.exchange.replicas import Replicas, broke_off
from kdcl_dist.membership.endpoint import Endpoint
from kdcl_dist.membership.failure_detector import await_all, diagnose
from kdcl_dist.membership.monitor import Monitor
from kdcl_dist.membership.rendezvous import GenerationSpec, Rendezvous, RunCompleted, WorkerInfo
from kdcl_dist.membership.tcp_store import connect_store, scoped
from kdcl_dist.run.checkpoint import read_part
from kdcl_dist.run.process import prepare_process
from kdcl_dist.run.run import Run, versions
from kdcl_dist.student.loop import StudentLoop
from kdcl_dist.student.student import Student

__all__ = ["Find", "run_student"]

#: Finds the coordinator's store: the first one, or the one that follows after a coordinator that was lost.
Find = Callable[[Endpoint | None], Endpoint]


def run_student(
    run: Run,
    rank: int,
    find: Find,
    *,
    host: str,
    device: torch.device,
    stop: Callable[[], bool],
) -> bool:
    """Train one student of a run, or one of its replicas, to the run's end.

    Args:
        run: the run.
        rank: place in `run.recipe.workers`.
        find: tells where the coordinator's store is; given an endpoint, where the next one is after that
            was lost. Raises `CoordinatorLost` when there is none.
        host: this process's address, by which the others reach it.
        device: where the network trains.
        stop: asked at each step whether this process wants the run to stop.

    Returns:
        True at the end of the run, False when it was stopped before, after a checkpoint.

    Raises:
        RunFailed: the coordinator ended the run, for a failure that it names.
        KdclError: this student's own failure, or one after which the coordinator does not go on.
    """
    prepare_process(run, threads=run.recipe.students[run.recipe.workers[rank].student].resources.cpu)
    lost: Endpoint | None = None
    how: KdclError | None = None
    while True:
        endpoint = find(lost)
        try:
            return _StudentRuntime(run, rank, endpoint, host, device, stop, how).run()
        except CoordinatorLost as error:
            error.at(host=endpoint.host)
            if not run.recipe.failure.allowed:
                raise
            # A copy: the error's frames hold the network that was trained here, and the step's activations.
            lost, how = endpoint, from_dict(error.to_dict())


class _StudentRuntime:
    """A student's place under one coordinator.

    Attributes:
        position: the round that the student takes next; None before its first generation.
        lost: how the student lost the coordinator before this one, if there was one.
    """

    def __init__(
        self,
        run: Run,
        rank: int,
        endpoint: Endpoint,
        host: str,
        device: torch.device,
        stop: Callable[[], bool],
        lost: KdclError | None,
    ) -> None:
        self.lost = lost
        self.run_, self.host, self.device, self.stop = run, host, device, stop
        self.worker, self.limits = run.recipe.workers[rank], run.recipe.limits
        self.spec = run.recipe.students[self.worker.student]
        self.store = scoped(connect_store(endpoint, self.limits.startup_s), run.id)
        names = [each.name for each in run.recipe.workers]
        self.monitor = Monitor(self.store, names, rank, generation=-1)  # of none until it is called
        self.rendezvous = Rendezvous(self.monitor)
        self.position: Round | None = None

    def run(self) -> bool:
        """Take part until the run's end; errors as `run_student`."""
        try:
            self.monitor.start_heartbeat(self.host, slow_s=self.limits.step_s / 2)
            self._prepare()
            while True:
                generation = self.rendezvous.join(
                    self._info(), self.position, self.limits.startup_s, self.lost
                )
                try:
                    flags = self._generation(generation)
                except KdclError as error:
                    if not self._survives(error):
                        raise
                else:
                    if Flag.REFORM not in flags:
                        return Flag.STOP not in flags
        except RunCompleted as ended:
            return ended.finished
        finally:
            self.monitor.say_bye()
            self.monitor.close()

    def _survives(self, error: KdclError) -> bool:
        """Whether this process stays: what broke the generation is another's failure, or one of numbers."""
        if error is not self.monitor.cause or isinstance(error, CoordinatorLost):
            return False
        return error.student != self.worker.name or isinstance(error, NonFiniteLogits)

    def _prepare(self) -> None:
        """Open the data, build the student, and find what is wrong before the cohort comes together."""
        try:
            self.monitor.heartbeat.enter("start")
            self.training_data = TrainingData.open(self.run_.recipe)
            self.student = _build(self.run_, self.worker, self.device, self.training_data)
            _try_out(self.student, self.training_data, self.worker)
        except Exception as error:
            cause = wrap(error, student=self.worker.name, step=None, phase="start").at(host=self.host)
            self.rendezvous.report(cause)
            raise cause from error

    def _info(self) -> WorkerInfo:
        cuda = self.device.type == "cuda"
        return WorkerInfo(
            name=self.worker.name,
            host=self.host,
            pid=os.getpid(),
            device=torch.cuda.get_device_name(self.device) if cuda else "cpu",
            parameters=self.student.parameters,
            classes=self.student.classes,
            schedule=asdict(self.training_data.schedule),
            data=self.training_data.fingerprints,
            versions=versions(),
        )

    def _generation(self, generation: GenerationSpec) -> Flag:
        """Train from the round of the generation until the last that it has, or the first failure."""
        monitor, run = self.monitor, replace(self.run_, start=generation.start, generation=generation.number)
        workers = run.recipe.workers
        present = [rank for rank, each in enumerate(workers) if each.student in generation.students]
        exchange: Exchange | None = None
        replicas: Replicas | None = None
        try:
            monitor.enter(generation.number, present, step=generation.at.step)
            self._take_up(generation)
            await_all(monitor, self.limits.startup_s)
            if self.spec.replicas > 1:
                replicas = self._join_replicas(generation.number)
            exchange = Exchange(
                monitor,
                scoped(self.store, str(generation.number)),
                host=self.host,
                layout=ExchangeLayout.of(run.recipe, self.student.classes),
                run=run.number,
                generation=generation.number,
                step_s=self.limits.step_s,
                pinned=self.device.type == "cuda",
            )
            loop = StudentLoop(
                run, self.worker, self.student, self.training_data, exchange, generation, self.stop
            )
            try:
                return loop.run()
            finally:
                self.position = loop.position
        except Exception as error:
            if error is monitor.cause:
                raise
            heartbeat, name = monitor.heartbeat, self.worker.name
            raise monitor.report(
                wrap(error, student=name, step=heartbeat.step, phase=heartbeat.phase)
            ) from error
        finally:
            if replicas is not None:
                replicas.close()
            if exchange is not None:
                exchange.close()

    def _take_up(self, generation: GenerationSpec) -> None:
        """Bring the student to the state in which the generation wants it."""
        state = None if self.worker.student in generation.restored else self.student.state_dict()
        if state is not None and self.spec.replicas == 1:
            return
        if self.position is not None:  # what it learned, and how its replicas were joined, is undone
            self.student = _build(self.run_, self.worker, self.device, self.training_data)
        if state is None and generation.start is not None and self.spec.name in generation.start.parts:
            state = read_part(self.run_.folder, generation.start, self.spec.name)
        if state is not None:
            self.student.load_state_dict(state)

    def _join_replicas(self, generation: int) -> Replicas:
        try:
            replicas = Replicas(
                scoped(self.store, f"{generation}/replicas/{self.spec.name}"),
                self.worker.replica,
                self.spec.replicas,
                host=self.host,
                device=self.device,
                limit_s=max(self.limits.startup_s, self.limits.step_s),
            )
            self.student.join(replicas)
        except RuntimeError as error:
            if broke_off(error):
                raise diagnose(self.monitor, error, limit_s=self.limits.step_s) from error
            raise
        return replicas


def _build(run: Run, worker: Worker, device: torch.device, training_data: TrainingData) -> Student:
    return Student(
        run.recipe,
        worker.student,
        replica=worker.replica,
        classes=len(training_data.train.classes),
        channels=training_data.train.channels,
        device=device,
        resumed=run.start is not None and run.recipe.students[worker.student].name in run.start.parts,
    )


def _try_out(student: Student, training_data: TrainingData, worker: Worker) -> None:
    """Find what is wrong with a network or its data before the cohort comes together."""
    student.check_output(next(training_data.test_batches()).images[:2])
    first = training_data.first_views(worker.student, 2)
    student.try_step(first.images, first.labels)

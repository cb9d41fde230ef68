"""A student's process: it builds the student and takes part in one generation after another."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import asdict, replace

import torch

from kdcl_dist.config.rounds import Round
from kdcl_dist.config.student import Worker
from kdcl_dist.data.training_data import TrainingData
from kdcl_dist.errors import CoordinatorLost, KdclError, NonFiniteLogits, RecipeError, from_dict, wrap
from kdcl_dist.exchange.generation import open_exchange
from kdcl_dist.exchange.message import Flag
from kdcl_dist.exchange.replicas import Replicas, broke_off
from kdcl_dist.membership.endpoint import Endpoint
from kdcl_dist.membership.failure_detector import diagnose
from kdcl_dist.membership.monitor import Monitor
from kdcl_dist.membership.rendezvous import GenerationSpec, Rendezvous, RunCompleted, WorkerInfo
from kdcl_dist.membership.tcp_store import connect_store, scoped
from kdcl_dist.run.checkpoint import read_part
from kdcl_dist.run.process import prepare_process
from kdcl_dist.run.run import Run, versions
from kdcl_dist.run.usage import write_usage
from kdcl_dist.student.dry_run import dry_run
from kdcl_dist.student.loop import StudentLoop
from kdcl_dist.student.student import Student
from kdcl_dist.utils.devices import describe_device

__all__ = ["Find", "run_student"]

#: Finds the store of the first coordinator, or of the coordinator after the one whose store was lost.
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
        rank: index in `run.recipe.workers`.
        find: returns the endpoint of the coordinator's store; given the endpoint of a lost store, that of
            the next coordinator. Raises `CoordinatorLost` when there is none.
        host: this process's address, by which the others reach it.
        device: of the network.
        stop: asked at each step whether this process wants the run to stop.

    Returns:
        True at the end of the run, False when it was stopped before, after a checkpoint.

    Raises:
        RunFailed: the coordinator ended the run; the error has the cause.
        KdclError: this student's own failure, or the loss of the coordinator where the run ends with it.
    """
    prepare_process(run, threads=run.recipe.students[run.recipe.workers[rank].student].resources.cpu)
    lost: Endpoint | None = None
    last_loss: KdclError | None = None
    while True:
        endpoint = find(lost)
        try:
            finished = _StudentRuntime(run, rank, endpoint, host, device, stop, last_loss).participate()
            if run.dry_steps is not None:
                write_usage(run.folder, run.recipe.workers[rank].name, host, device)
            return finished
        except CoordinatorLost as error:
            error.at(host=endpoint.host)
            if not run.recipe.failure.allowed:
                raise
            # A copy: the error's frames hold the network of this runtime, and the step's activations.
            lost, last_loss = endpoint, from_dict(error.to_dict())


class _StudentRuntime:
    """A student's process under one coordinator.

    Attributes:
        position: the next round; None before the first generation.
        last_loss: how the student lost the coordinator before this one, if there was one.
    """

    def __init__(
        self,
        run: Run,
        rank: int,
        endpoint: Endpoint,
        host: str,
        device: torch.device,
        stop: Callable[[], bool],
        last_loss: KdclError | None,
    ) -> None:
        self.last_loss = last_loss
        self.run, self.host, self.device, self.stop = run, host, device, stop
        self.worker, self.limits = run.recipe.workers[rank], run.recipe.limits
        self.spec = run.recipe.students[self.worker.student]
        self.store = scoped(connect_store(endpoint, self.limits.startup_s), run.id)
        names = [each.name for each in run.recipe.workers]
        self.monitor = Monitor(self.store, names, rank, generation=-1)  # of no generation yet
        self.rendezvous = Rendezvous(self.monitor)
        self.position: Round | None = None

    def participate(self) -> bool:
        """Take part until the run's end; errors as `run_student`."""
        try:
            self.monitor.start_heartbeat(self.host, slow_s=self.limits.step_s / 2)
            self._prepare()
            while True:
                spec = self.rendezvous.join(
                    self._describe(), self.position, self.limits.startup_s, self.last_loss
                )
                try:
                    flags = self._run_generation(spec)
                except KdclError as error:
                    if not self._survives(error):
                        raise
                else:
                    if Flag.REFORM not in flags:
                        return Flag.STOP not in flags
        except RunCompleted as completed:
            return completed.finished
        finally:
            self.monitor.report_departure()
            self.monitor.close()

    def _survives(self, error: KdclError) -> bool:
        """Whether this process can join the next generation.

        It can if the first failure is another process's, or bad numbers, which leave this process intact.
        """
        if error is not self.monitor.cause or isinstance(error, CoordinatorLost):
            return False
        return error.student != self.worker.name or isinstance(error, NonFiniteLogits)

    def _prepare(self) -> None:
        """Open the data, build the student and try it, before the cohort forms."""
        try:
            self.monitor.heartbeat.enter("start")
            self._claim_device()
            self.training_data = replace(TrainingData.open(self.run.recipe), dry_steps=self.run.dry_steps)
            self.student = _build(self.run, self.worker, self.device, self.training_data)
            self.peak_memory = dry_run(self.student, self.training_data, self.worker.student)
        except BaseException as error:  # a user's code may raise SystemExit as well
            cause = wrap(error, student=self.worker.name, step=None, phase="start").at(host=self.host)
            self.rendezvous.report(cause)
            raise cause from error

    def _claim_device(self) -> None:
        """Make a GPU the current one of this process, which else holds memory on the first GPU too."""
        if self.device.type != "cuda":
            return
        if not torch.cuda.is_available():
            raise RecipeError(
                f"students.{self.spec.name}.resources.gpu: {self.spec.resources.gpu}, but PyTorch "
                f"{torch.__version__} can use no GPU on this host; set it to auto or 0"
            )
        if self.device.index is not None:
            torch.cuda.set_device(self.device)

    def _describe(self) -> WorkerInfo:
        return WorkerInfo(
            name=self.worker.name,
            host=self.host,
            pid=os.getpid(),
            device=describe_device(self.device),
            parameters=self.student.parameters,
            classes=self.student.classes,
            schedule=asdict(self.training_data.schedule),
            data=self.training_data.fingerprints,
            versions=versions(),
            peak_memory=self.peak_memory,
            cores=len(os.sched_getaffinity(0)),
        )

    def _run_generation(self, spec: GenerationSpec) -> Flag:
        """Run the rounds of one generation: to its end, or to the first failure."""
        run = replace(self.run, start=spec.start, generation=spec.number)
        present = [rank for rank, each in enumerate(run.recipe.workers) if each.student in spec.students]

        def prepare() -> None:
            """Enter the generation with the state that it asks for."""
            self.monitor.enter(spec.number, present, step=spec.at.step)
            self._restore(spec)

        exchange_group = open_exchange(
            run,
            self.monitor,
            host=self.host,
            classes=self.student.classes,
            pinned=self.device.type == "cuda",
            prepare=prepare,
            connect=(lambda: closing(self._join_replicas(spec.number))) if self.spec.replicas > 1 else None,
        )
        with exchange_group as exchange:
            loop = StudentLoop(run, self.worker, self.student, self.training_data, exchange, spec, self.stop)
            try:
                flags = loop.run_rounds()
            finally:
                self.position = loop.position
            with suppress(KdclError):  # the next generation, if there is one, misses a peer that is lost now
                exchange.flush()
            return flags

    def _restore(self, spec: GenerationSpec) -> None:
        """Give the student the state with which the generation begins: its own, or that of a checkpoint."""
        state = None if self.worker.student in spec.restored else self.student.state_dict()
        if state is not None and self.spec.replicas == 1:
            return
        if self.position is not None:  # a new student: without what it learned, and not joined to replicas
            self.student = _build(self.run, self.worker, self.device, self.training_data)
        if state is None and spec.start is not None and self.spec.name in spec.start.parts:
            state = read_part(self.run.folder, spec.start, self.spec.name)
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
    return Student.of(
        training_data,
        worker.student,
        replica=worker.replica,
        device=device,
        resumed=run.start is not None and run.recipe.students[worker.student].name in run.start.parts,
    )

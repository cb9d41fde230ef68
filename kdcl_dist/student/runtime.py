"""A student's process: it builds the student and takes part in one generation after another."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from kdcl_dist.config.recipe import Recipe
from kdcl_dist.config.student import Worker
from kdcl_dist.data.training_data import TrainingData
from kdcl_dist.errors import KdclError, RecipeError, wrap
from kdcl_dist.exchange.generation import open_exchange
from kdcl_dist.exchange.member import Find, Member, follow
from kdcl_dist.exchange.message import Flag
from kdcl_dist.exchange.replicas import Replicas, broke_off
from kdcl_dist.membership.endpoint import Endpoint
from kdcl_dist.membership.failure_detector import diagnose
from kdcl_dist.membership.generation_spec import GenerationSpec
from kdcl_dist.membership.rendezvous import WorkerInfo
from kdcl_dist.membership.tcp_store import scoped
from kdcl_dist.models.remote.network import ServedNetwork
from kdcl_dist.run.checkpoint import InMemory, Manifest, read_part
from kdcl_dist.run.process import prepare_process
from kdcl_dist.run.run import Run, versions
from kdcl_dist.run.usage import write_usage
from kdcl_dist.student.dry_run import dry_run
from kdcl_dist.student.keeper import StateKeeper
from kdcl_dist.student.loop import StudentLoop
from kdcl_dist.student.step_part import StepPart
from kdcl_dist.student.student import Student
from kdcl_dist.utils.devices import describe_device

__all__ = ["run_student"]


def run_student(
    run: Run,
    rank: int,
    find: Find,
    *,
    host: str,
    device: torch.device,
    stop: Callable[[], bool],
    took_over: str = "",
) -> bool:
    """Train one student of a run, or one of its replicas, to the run's end.

    Args:
        run: the run.
        rank: index in `run.recipe.workers`.
        find: of the coordinator's store; see `kdcl_dist.exchange.member.follow`, also for what is returned
            and raised.
        host: this process's address, by which the others reach it.
        device: of the network.
        stop: asked at each step whether this process wants the run to stop.
        took_over: see `WorkerInfo`.
    """
    prepare_process(run, threads=run.recipe.students[run.recipe.workers[rank].student].resources.cpu)

    prepared: _Prepared | None = None

    def participate(endpoint: Endpoint, last_loss: KdclError | None) -> bool:
        """Take part under one coordinator."""
        nonlocal prepared
        runtime = _StudentRuntime(run, rank, endpoint, host, device, stop, last_loss)
        runtime.prepared, runtime.took_over = prepared, took_over
        try:
            finished = runtime.participate()
        finally:
            prepared = runtime.prepared
        if run.dry_steps is not None:
            write_usage(run.folder, run.recipe.workers[rank].name, host, device)
        return finished

    return follow(run, find, participate)


@dataclass(frozen=True)
class _Prepared:
    """What a student's process keeps from its start for the coordinators that follow the first."""

    training_data: TrainingData
    info: WorkerInfo


class _StudentRuntime(Member):
    """A student's process under one coordinator."""

    prepared: _Prepared | None = None
    took_over = ""

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
        super().__init__(run, rank, endpoint, host, last_loss)
        self.device, self.stop, self.worker = device, stop, run.recipe.workers[rank]
        self.spec = run.recipe.students[self.worker.student]
        self.unsent: list[StepPart] = []  # figures of the last step of the generation before
        self.keeper = StateKeeper(self.store, self.monitor, self.spec.name, self.limits.startup_s)

    def participate(self) -> bool:
        """As of `Member`."""
        with closing(self.keeper):
            return super().participate()

    def is_over(self, epoch: int) -> bool:
        """Whether the student has left the cohort by an epoch."""
        return self.spec.has_left(epoch)

    def prepare(self) -> None:
        """Open the data, build the student and try it, before the cohort forms.

        A student that joins later keeps no network until then: it learns now that it can train. Under
        another coordinator than the first all is prepared, but for the network: its state is a checkpoint's.
        """
        if self.prepared is not None:
            self.training_data, self.info = self.prepared.training_data, self.prepared.info
            return
        try:
            self.monitor.heartbeat.enter("start")
            self._claim_device()
            self.training_data = replace(TrainingData.open(self.run.recipe), dry_steps=self.run.dry_steps)
            self.student = _build(self.run, self.worker, self.device, self.training_data)
            self.peak_memory = dry_run(self.student, self.training_data, self.worker.student)
            self.info = self._info()
            self.prepared = _Prepared(self.training_data, self.info)
            if not self.spec.takes_part(self.run.epoch):
                self._release()
        except BaseException as error:  # a user's code may raise SystemExit as well
            cause = wrap(error, student=self.worker.name, step=None, phase="start").at(host=self.host)
            self.rendezvous.report(cause)
            raise cause from error

    def adopt(self, recipe: Recipe) -> None:
        """Take over a recipe; the network, and what is known of the data, stay."""
        super().adopt(recipe)
        self.spec, self.training_data = recipe.students[self.worker.student], self.training_data.of(recipe)
        if hasattr(self, "student"):
            self.student.recipe, self.student.spec = recipe, self.spec

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

    def _release(self) -> None:
        """Free the network's memory, which others may need until this student joins."""
        del self.student
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def describe(self) -> WorkerInfo:
        """What the coordinator is told of this process."""
        return self.info

    def _info(self) -> WorkerInfo:
        records = self.run.recipe.distillation.record_logits is not None
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
            class_names=list(self.training_data.train.classes) if records else [],
            took_over=self.took_over,
        )

    def run_generation(self, spec: GenerationSpec) -> Flag:
        """Run the rounds of one generation: to its end, or to the first failure."""
        run = replace(self.run, start=spec.start, generation=spec.number)
        present = [rank for rank, each in enumerate(run.recipe.workers) if each.student in spec.students]

        def prepare() -> None:
            """Enter the generation with the state that it asks for."""
            self.monitor.enter(spec.number, [*present, *spec.assistants], step=spec.at.step)
            self._restore(spec)

        exchange_group = open_exchange(
            run,
            self.monitor,
            host=self.host,
            classes=self.info.classes,
            pinned=self.device.type == "cuda",
            prepare=prepare,
            connect=(lambda: self._join_replicas(spec.number)) if self.spec.replicas > 1 else None,
        )
        with exchange_group as exchange:
            own = self.worker, self.student, self.training_data
            loop = StudentLoop(run, *own, exchange, spec, self.stop, keeper=self.keeper)
            loop.parts, self.unsent = self.unsent, []
            try:
                flags = loop.run_rounds()
            finally:
                self.position = loop.position
            self.unsent = loop.parts
            with suppress(KdclError):  # the next generation, if there is one, misses a peer that is lost now
                exchange.flush()
            return flags

    def _restore(self, spec: GenerationSpec) -> None:
        """Give the student the state with which the generation begins: its own, or that of a checkpoint."""
        state = None if self.worker.student in spec.restored else self.student.state_dict()
        if state is None:
            self.unsent = []  # the step is trained again
        if state is not None and self.spec.replicas == 1:
            return
        # A new student, where there is none, or one that has learned or is joined to replicas.
        if self.position is not None or not hasattr(self, "student"):
            self.student = _build(self.run, self.worker, self.device, self.training_data)
        if state is None and spec.start is not None and self.spec.name in spec.start.parts:
            state = self._saved(spec.start)
        if state is not None:
            self.student.load_state_dict(state)

    def _saved(self, start: Manifest) -> dict[str, Any]:
        if isinstance(start, InMemory):
            return self.keeper.state(start)
        return read_part(self.run.folder, start, self.spec.name)

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
    student = Student.of(
        training_data,
        worker.student,
        replica=worker.replica,
        device=device,
        resumed=run.start is not None and run.recipe.students[worker.student].name in run.start.parts,
    )
    if isinstance(student.model, ServedNetwork):
        student.model.names = training_data.train.classes
        student.model.limit_s = run.recipe.limits.step_s / 2  # the others wait for no longer
    return student

"""The coordinator's place in the cohort: it calls the students together, and again after each failure."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import Protocol

from kdcl_dist.config.rounds import RunSchedule
from kdcl_dist.coordinator.agreement import check_agreement, check_same_data
from kdcl_dist.coordinator.loop import CoordinatorLoop, CoordinatorState
from kdcl_dist.coordinator.recovery_policy import is_fatal, survivors_can_continue
from kdcl_dist.coordinator.roster import Absences
from kdcl_dist.errors import (
    CoordinatorCutOff,
    CoordinatorLost,
    KdclError,
    StorageError,
    wrap,
)
from kdcl_dist.exchange.group import Exchange
from kdcl_dist.exchange.layout import ExchangeLayout
from kdcl_dist.exchange.message import Flag
from kdcl_dist.membership.failure_detector import await_all
from kdcl_dist.membership.monitor import Monitor
from kdcl_dist.membership.rendezvous import GenerationSpec, PendingJoin, Rendezvous, WorkerInfo
from kdcl_dist.membership.store import Store
from kdcl_dist.membership.tcp_store import scoped
from kdcl_dist.run.checkpoint import Manifest, latest
from kdcl_dist.run.events import Event, Note, Started, Warned
from kdcl_dist.run.process import prepare_process
from kdcl_dist.run.record import (
    next_generation,
    past_failures,
    read_record,
    record_failure,
    record_survival,
    update_record,
)
from kdcl_dist.run.run import Run

__all__ = ["Processes", "run_coordinator"]

#: Seconds for which the store stays open after a failure, so that all can read its cause.
LINGER_S = 10.0


class Processes(Protocol):
    """What the coordinator asks of whoever started the cohort's processes."""

    def is_gone(self, name: str, pid: int) -> bool:
        """Whether a worker's process is known to be dead."""

    def end(self, name: str, pid: int) -> None:
        """End a worker's process that does not answer, so that it is replaced."""

    def notice(self) -> str | None:
        """Once for each: that a worker's host will soon be taken away."""


def run_coordinator(
    run: Run,
    store: Store,
    *,
    host: str,
    stop: Callable[[], bool],
    emit: Callable[[Event], None],
    processes: Processes | None = None,
) -> bool:
    """Coordinate a run to its end, over all generations of its exchange group.

    Args:
        run: the run.
        store: the store that this process hosts.
        host: this process's address.
        stop: asked at each step whether the run shall stop, with a checkpoint.
        emit: hears what happens.
        processes: knows the cohort's processes; None: nobody replaces one.

    Returns:
        True at the end of the run, False when it was stopped before, after a checkpoint.

    Raises:
        CoordinatorCutOff: this process cannot reach the store; another coordinator can go on.
        KdclError: the failure that ended the run.
    """
    names = [worker.name for worker in run.recipe.workers]
    is_gone = None if processes is None else processes.is_gone
    monitor = Monitor(scoped(store, run.id), names, len(names), is_gone=is_gone)
    monitor.start_heartbeat(host, slow_s=run.recipe.limits.step_s / 2)
    try:
        prepare_process(run, threads=1)
        return _CoordinatorRuntime(run, monitor, host, stop, emit, processes).run()
    finally:
        with contextlib.suppress(CoordinatorLost):
            monitor.await_byes(LINGER_S)
        monitor.close()


class _CoordinatorRuntime:
    """Calls the cohort together, and again after each failure that the run survives.

    Attributes:
        state: what the coordinator knows; None where it takes that from the latest checkpoint.
        away: places of the students that the others do not wait for.
    """

    def __init__(
        self,
        run: Run,
        monitor: Monitor,
        host: str,
        stop: Callable[[], bool],
        emit: Callable[[Event], None],
        processes: Processes | None,
    ) -> None:
        self.run_, self.recipe, self.monitor, self.host = run, run.recipe, monitor, host
        self.stop, self.emit, self.processes = stop, emit, processes
        self.rendezvous = Rendezvous(monitor)
        self.past = past_failures(run)
        self.number = next_generation(run)
        self.state: CoordinatorState | None = None
        self.away: set[int] = set()
        self.failed: set[int] = set()
        self.absences = Absences(run.recipe.names, read_record(run.folder).get("absences", ()))

    def run(self) -> bool:
        """Coordinate; see `run_coordinator`."""
        try:
            if self.number > 0:  # another coordinator was here, and died
                self.run_.remove_partial()
                self._recover(CoordinatorLost("the coordinator died"))
            while True:
                try:
                    flags = self._generation(self.stop)
                except Exception as error:
                    self._recover(wrap(error, student=None, step=None, phase=self.monitor.heartbeat.phase))
                else:
                    if Flag.REFORM not in flags:
                        self.rendezvous.close(Flag.STOP not in flags)
                        return Flag.STOP not in flags
                self.number += 1
        except CoordinatorCutOff:
            raise
        except Exception as error:
            cause = wrap(error, student=None, step=None, phase="recovery")
            cause.at(host=self.host if cause.student is None else None)
            record_failure(self.run_, cause)
            self.rendezvous.end(cause)
            raise cause from error
        finally:
            self._forget()

    def _generation(self, stop: Callable[[], bool]) -> Flag:
        """Coordinate from one call to the end of the run, the next call, or the first failure."""
        monitor = self.monitor
        monitor.enter(self.number, step=self.state.position.step if self.state else None)
        ready = self.rendezvous.assemble(self._awaited(), self.recipe.limits.startup_s)
        self._learn_of_loss([each.lost for each in ready.values() if each.lost is not None])
        present = [place for place in self._places() if set(self._ranks([place])) <= set(ready)]
        ranks = self._ranks(present)
        infos = [ready[rank].info for rank in ranks]
        run = replace(self.run_, start=self._start(), generation=self.number)
        schedule = self._agreed(run, infos)
        restored = self._settle(run, schedule, {rank: ready[rank] for rank in ranks}, present)
        assert self.state is not None
        state = self.state
        self.rendezvous.call(
            GenerationSpec(self.number, run.start, state.position, tuple(present), restored), ranks
        )
        processes = {rank: (ready[rank].info.host, ready[rank].info.pid) for rank in ranks}
        monitor.enter(self.number, ranks, processes, state.position.step)
        exchange: Exchange | None = None
        try:
            await_all(monitor, self.recipe.limits.startup_s)
            exchange = Exchange(
                monitor,
                scoped(monitor.store, str(self.number)),
                host=self.host,
                layout=ExchangeLayout.of(self.recipe, infos[0].classes),
                run=run.number,
                generation=self.number,
                step_s=self.recipe.limits.step_s,
            )
            self._announce(run, schedule, infos)
            loop = CoordinatorLoop(
                run,
                schedule,
                state,
                present,
                exchange,
                stop=stop,
                returns=self._returns,
                notice=(lambda: None) if self.processes is None else self.processes.notice,
                emit=self.emit,
            )
            flags = loop.run()
            exchange.flush()
            return flags
        except Exception as error:
            if error is monitor.cause:
                raise
            heartbeat = monitor.heartbeat
            raise monitor.report(
                wrap(error, student=None, step=heartbeat.step, phase=heartbeat.phase)
            ) from error
        finally:
            if exchange is not None:
                exchange.close()

    def _learn_of_loss(self, told: Sequence[KdclError]) -> None:
        """Complete the record of a coordinator that died by what the students saw of it; once."""
        cause = self.past[-1] if self.past else None
        if told and isinstance(cause, CoordinatorLost) and cause.host is None:
            last = max(told, key=lambda error: error.step or 0)
            cause.at(step=last.step, phase=last.phase, host=last.host).detail = last.detail
            with contextlib.suppress(StorageError):
                record_survival(self.run_, self.past)

    # -- who takes part --------------------------------------------------------------------------

    def _places(self) -> range:
        return range(len(self.recipe.students))

    def _ranks(self, places: Sequence[int]) -> list[int]:
        """The ranks of some students' workers."""
        return [rank for rank, worker in enumerate(self.recipe.workers) if worker.student in places]

    def _awaited(self) -> list[int]:
        """The ranks without which the cohort does not go on."""
        there = [place for place in self._places() if place not in self.away]
        return self._ranks(there if self._has_quorum(there) else self._places())

    def _has_quorum(self, there: Sequence[int]) -> bool:
        """Whether some students are enough to go on with."""
        failure, teacher = self.recipe.failure, self.recipe.distillation.teacher
        least = 1 if failure.policy == "stop" else min(failure.min_students, len(self._places()))
        has_teacher = teacher is None or self.recipe.names.index(teacher) in there
        return len(there) >= least and has_teacher

    def _returns(self) -> bool:
        """Whether a student that is away is ready to join again."""
        found = [place for place in self.away if self.rendezvous.waits_for(self._ranks([place]))]
        for error in self.rendezvous.failures():
            self.emit(Warned(f"{error}"))
        return bool(found)

    def _agreed(self, run: Run, infos: Sequence[WorkerInfo]) -> RunSchedule:
        """The schedule that all mean, after a look at whether they do."""
        check_agreement(infos)
        check_same_data(run, infos[0])
        return RunSchedule(**infos[0].schedule)

    # -- where it goes on ------------------------------------------------------------------------

    def _start(self) -> Manifest | None:
        """The checkpoint from which those take their state who have none, or all of them."""
        if self.state is not None:
            return self.state.saved
        if self.number == 0:
            return self.run_.start
        return latest(self.run_.folder, lambda text: self.emit(Warned(f"{text}")))

    def _settle(
        self, run: Run, schedule: RunSchedule, ready: dict[int, PendingJoin], present: Sequence[int]
    ) -> tuple[int, ...]:
        """Decide at which round all go on, in `state`; the students that take up their state of a checkpoint.

        Students that go on may be a round apart: one got the coordinator's answer, another did not. All go on
        at the foremost round, without the step that they did not take.
        """
        self.away = set(self._places()) - set(present)
        if self.state is None:
            self.state = CoordinatorState.of(run, schedule, next(iter(ready.values())).info.classes)
            self.absences.rewind(run.start)
            return tuple(present)
        foremost, restored = self.state.position.rewound, []
        for place in present:
            positions = {ready[rank].position for rank in self._ranks([place])}
            position = positions.pop()
            if position is None or positions or place in self.failed:  # its replicas may differ by a step
                restored.append(place)
                self.state.aggregator.bad_steps.pop(place, None)
            elif position.moment > foremost.moment:
                foremost = position.rewound
        self.state.position = foremost
        if self.state.aggregator.window_check is not None:
            self.state.aggregator.window_check.interrupt()
        self.failed -= set(present)
        for line in self.absences.note(present, restored, foremost.step, run.start):
            self.emit(Note(line))
        return tuple(restored)

    def _announce(self, run: Run, schedule: RunSchedule, infos: Sequence[WorkerInfo]) -> None:
        assert self.state is not None
        fields = ("host", "pid", "device", "parameters")
        placement = {info.name: {field: asdict(info)[field] for field in fields} for info in infos}
        update_record(
            run.folder,
            state="running",
            data=infos[0].data,
            placement=placement,
            generation={"run": run.id, "number": self.number},
            absences=self.absences.found,
        )
        step = self.state.position.step
        self.emit(Started(self.recipe.names, placement, schedule.epochs, schedule.steps_per_epoch, step))

    # -- failures --------------------------------------------------------------------------------

    def _recover(self, cause: KdclError) -> None:
        """Make room for the next generation; raises the cause where the run ends with it."""
        failure = self.recipe.failure
        if isinstance(cause, CoordinatorLost) and len(self.past) < failure.allowed:
            self._check_store()
        lost = self._lost(cause)
        if is_fatal(failure, self.past, cause):
            if failure.policy == "stop" and survivors_can_continue(cause):
                self._save(lost)
            raise cause
        self.past.append(cause)
        if self.processes is not None:
            for name, pid in self.monitor.lost:
                self.processes.end(name, pid)
        if failure.policy == "continue" and self.state is not None and survivors_can_continue(cause):
            self.away |= lost
            self.failed |= lost
            then = (
                "the others go on"
                if self._has_quorum([p for p in self._places() if p not in self.away])
                else ""
            )
            then = (
                then or f"fewer than {failure.min_students} are left (failure.min_students): they wait for it"
            )
        else:
            self._forget()
            then = "all go back to the latest checkpoint"
        count = f"failure {len(self.past)} of at most {failure.max_failures}"
        self.emit(Note(f"{cause}; {then} ({count}, failure.max_failures)"))
        with contextlib.suppress(StorageError):
            record_survival(self.run_, self.past)

    def _check_store(self) -> None:
        """See that this process reaches its store, without which it would lose every generation."""
        try:
            self.monitor.has("over")
        except CoordinatorLost as error:
            raise CoordinatorCutOff(error.message, host=self.host, phase="recovery") from error

    def _lost(self, cause: KdclError) -> set[int]:
        """Places of the students that a failure takes out."""
        names = {name for name, _ in self.monitor.lost} | {cause.student}
        workers = enumerate(self.recipe.workers)
        by_worker = {worker.student for _, worker in workers if worker.name in names}
        return by_worker | {place for place, name in enumerate(self.recipe.names) if name in names}

    def _save(self, lost: set[int]) -> None:
        """Let those who are left take a checkpoint."""
        self.away |= lost
        if self.state is None or not self._has_quorum([p for p in self._places() if p not in self.away]):
            return
        self.number += 1
        try:
            self._generation(lambda: True)
            step = None if self.state.saved is None else self.state.saved.step
            self.emit(Note(f"the state of the others at step {step} is saved: --resume goes on from there"))
        except Exception as error:
            self.emit(Warned(f"the others could not save their state: {error}"))

    def _forget(self) -> None:
        """Round away from what is not of a checkpoint."""
        if self.state is not None:
            self.state.close()
        self.state, self.away, self.failed = None, set(), set()

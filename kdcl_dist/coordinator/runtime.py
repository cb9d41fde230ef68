"""The coordinator's process: it forms the cohort, and forms it anew after each failure."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import torch

from kdcl_dist.config.rounds import RunSchedule
from kdcl_dist.coordinator import agreement
from kdcl_dist.coordinator.checkpointing import CoordinatorState, epoch_of
from kdcl_dist.coordinator.live_change import LiveChange
from kdcl_dist.coordinator.loop import CoordinatorLoop
from kdcl_dist.coordinator.memory_checkpoints import MemoryCheckpoints
from kdcl_dist.coordinator.past_failures import PastFailures
from kdcl_dist.coordinator.preparation import prepare_coordinator
from kdcl_dist.coordinator.processes import Processes
from kdcl_dist.coordinator.recovery_policy import Decision, decide, survivors_can_continue
from kdcl_dist.coordinator.returns import Returns
from kdcl_dist.coordinator.roster import Roster
from kdcl_dist.coordinator.start_record import placement_of, record_start
from kdcl_dist.coordinator.wait_report import WaitReport
from kdcl_dist.errors import CoordinatorCutOff, CoordinatorLost, KdclError, wrap
from kdcl_dist.exchange.generation import open_exchange
from kdcl_dist.exchange.group import Exchange
from kdcl_dist.exchange.message import Flag
from kdcl_dist.membership.generation_spec import GenerationSpec
from kdcl_dist.membership.monitor import COORDINATOR, Monitor
from kdcl_dist.membership.rendezvous import Joins, Rendezvous, WorkerInfo
from kdcl_dist.membership.store import Store
from kdcl_dist.membership.tcp_store import scoped, shelf_of
from kdcl_dist.run.checkpoint import Manifest, latest
from kdcl_dist.run.cohort_requests import as_begun
from kdcl_dist.run.events import Event, Note, Started, Warned
from kdcl_dist.run.record import next_generation, read_record, record_failure, recorded_end
from kdcl_dist.run.run import Run
from kdcl_dist.run.usage import write_usage
from kdcl_dist.tracking.tracker import Status
from kdcl_dist.tracking.tracking import Tracking

__all__ = ["run_coordinator"]

#: Seconds for which the store stays open after a failure, so that all can read its cause.
LINGER_S = 10.0


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
        emit: called with each event.
        processes: of the cohort; None: no process is replaced.

    Returns:
        True at the end of the run, False when it was stopped before, after a checkpoint.

    Raises:
        CoordinatorCutOff: this process cannot reach the store; another coordinator can continue.
        KdclError: the failure that ended the run.
    """
    run = as_begun(run)
    names = run.recipe.members
    is_gone = None if processes is None else processes.is_gone
    monitor = Monitor(scoped(store, run.id), names, len(names), is_gone=is_gone)
    monitor.start_heartbeat(host, slow_s=run.recipe.limits.step_s / 2)
    try:
        prepare_coordinator(run)
        finished = _CoordinatorRuntime(run, monitor, host, stop, emit, processes).coordinate()
        if run.dry_steps is not None:
            write_usage(run.folder, COORDINATOR, host, torch.device("cpu"))
        return finished
    finally:
        with contextlib.suppress(CoordinatorLost):
            monitor.await_departures(LINGER_S)
        monitor.close()


class _CoordinatorRuntime:
    """Forms one generation of the cohort after another, until the run ends.

    Attributes:
        state: the coordinator's state; None where the latest checkpoint has it.
        past: the failures that the run has survived.
        memory: the checkpoints in memory.
        change: what is asked of the cohort.
        cohort: the number of the recipe that the run has; each change of the cohort brings another.
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
        self.run, self.recipe, self.monitor, self.host = run, run.recipe, monitor, host
        self.stop, self.emit, self.processes = stop, emit, processes
        self.rendezvous = Rendezvous(monitor, (lambda name: False) if processes is None else processes.has)
        self.past = PastFailures(run)
        self.number = next_generation(run)
        self.state: CoordinatorState | None = None
        self.roster = Roster(run.recipe, read_record(run.folder).get("absences", ()))
        self.tracking = Tracking(run, emit)
        self.memory = MemoryCheckpoints(run.recipe, shelf_of(monitor.store))
        self.change, self.cohort = LiveChange(run, processes, self.rendezvous.wait_to_join, emit), 0
        self.returns = Returns(self.roster, self.rendezvous, self.past.causes, self._survive, emit)

    def coordinate(self) -> bool:
        """Coordinate the run to its end; see `run_coordinator`."""
        status: Status | None = "failed"
        try:
            finished = recorded_end(self.run) if self.number > 0 else None
            if finished is None:
                with WaitReport(self.monitor, lambda: self.rendezvous.missing, self.emit), self.change:
                    finished = self._run_generations()
            self.rendezvous.complete(finished)
            status = "finished" if finished else "interrupted"
            return finished
        except CoordinatorCutOff:
            status = None
            raise
        except Exception as error:
            cause = wrap(error, student=None, step=None, phase="recovery")
            cause.at(host=self.host if cause.student is None else None)
            record_failure(self.run, cause)
            self.rendezvous.fail(cause)
            raise cause from error
        finally:
            self._discard_state()
            self.tracking.close(status)

    def _run_generations(self) -> bool:
        """Run one generation after another; the result of `coordinate`."""
        if self.number > 0:  # a coordinator before this one died
            self.run.remove_partial()
            self._recover(CoordinatorLost("the coordinator died"))
        while True:
            try:
                flags = self._run_generation(self.stop)
                if Flag.REFORM not in flags:
                    return Flag.STOP not in flags
                self._change_cohort()
            except Exception as error:
                self._recover(wrap(error, student=None, step=None, phase=self.monitor.heartbeat.phase))
            self.number += 1

    def _change_cohort(self) -> None:
        """Take over the recipe that meets what is asked of the cohort, if something can be met now."""
        assert self.state is not None
        if (recipe := self.change.meet(self.state.next_change)) is None:
            return
        self.run, self.recipe, self.cohort = replace(self.run, recipe=recipe), recipe, self.cohort + 1
        self.roster.adopt(recipe, self.roster.absences.found)
        self.monitor.adopt(recipe.members)
        self.state.adopt(recipe)

    def _run_generation(self, stop: Callable[[], bool], *, alone: bool = False) -> Flag:
        """Coordinate one generation: to the run's end, to the next generation, or to the first failure.

        `stop` is as of `run_coordinator`; `alone`: without assistants.
        """
        monitor = self.monitor
        monitor.enter(self.number, step=self.state.position.step if self.state else None)
        assistants = [] if alone else self.roster.assistants
        run, joins, assisting = self._assemble(assistants)
        present = self.roster.complete(joins)
        workers = [join.info for join in joins.values()]
        schedule, self.change.member = agreement.schedule_of(self.recipe, workers[0]), workers[0]
        agreement.check_same_data(run, workers[0])
        if changed := agreement.changed_devices(run, workers):
            self.emit(Warned(f"results may differ in the last bits: {'; '.join(changed)} (another device)"))
        restored = self._resume_state(run, schedule, joins, present)
        assert self.state is not None
        agreement.check_stored(
            run, self.state.aggregator.stored, workers[0], [own.info for own in assisting.values()]
        )
        state, joins, classes = self.state, joins | assisting, workers[0].classes
        state.aggregator.members, state.aggregator.present = self.roster.members, present
        at, epochs, students = state.position, state.schedule.epochs, tuple(present)
        spec = GenerationSpec(
            self.number, run.start, at, students, restored, epochs, classes, tuple(assistants), self.cohort
        )
        self.rendezvous.publish(self.cohort, self.recipe.model_dump(mode="json"))
        self.rendezvous.announce(spec, list(joins))
        processes = {rank: (join.info.host, join.info.pid) for rank, join in joins.items()}
        monitor.enter(self.number, list(joins), processes, state.position.step)
        names, per_epoch = self.recipe.names, schedule.steps_per_epoch
        started = Started(names, placement_of(workers), epochs, per_epoch, at.step)
        record = partial(self._record_start, run, schedule, workers)
        with open_exchange(run, monitor, host=self.host, classes=classes, prepare=record) as exchange:
            return self._run_rounds(run, exchange, stop, started)

    def _assemble(self, assistants: Sequence[int]) -> tuple[Run, Joins, Joins]:
        """Await the next generation; returns by rank the joins of its workers, and of some assistants.

        The run that is returned starts where the generation takes restored states from.
        """
        run = replace(self.run, start=self._start(), generation=self.number)
        epoch = run.epoch if self.state is None else self._epoch(run, self.state.schedule)
        self.roster.expect(epoch, later=self.state is None)
        awaited = [*self.roster.awaited(), *assistants]
        joins = self.rendezvous.assemble(awaited, self.recipe.limits.startup_s)
        positions = {
            rank: join.position for rank, join in joins.items() if rank not in self.roster.assistants
        }
        if self.state is not None and self.roster.has_lost_all(positions, self.state.position, run.start):
            self._discard_state()
            self.emit(Note(f"no student has its state any more: {self.memory.consequence()}"))
            return self._assemble(assistants)
        self.past.complete_last([join.lost for join in joins.values() if join.lost is not None])
        helpers = {rank: joins.pop(rank) for rank in self.roster.assistants if rank in joins}
        assisting = {rank: helpers[rank] for rank in assistants}
        workers = [join.info for join in joins.values()]
        agreement.check_agreement(workers, [join.info for join in assisting.values()])
        self.roster.expect(self._epoch(run, agreement.schedule_of(self.recipe, workers[0])))
        return run, {rank: joins[rank] for rank in self.roster.ranks(self.roster.complete(joins))}, assisting

    def _run_rounds(self, run: Run, exchange: Exchange, stop: Callable[[], bool], started: Started) -> Flag:
        assert self.state is not None
        self.tracking.start()
        self.emit(started)
        loop = CoordinatorLoop(
            run,
            self.state,
            exchange,
            self.memory,
            stop=stop,
            has_returned=self.returns.has_returned,
            change=self.change,
            notice=(lambda: None) if self.processes is None else self.processes.notice,
            emit=self.emit,
        )
        flags = loop.run_rounds()
        exchange.flush()
        return flags

    def _start(self) -> Manifest | None:
        """The checkpoint from which restored students take their state."""
        if (kept := self.memory.newest()) is not None:
            return kept
        if self.state is not None:
            return self.state.saved
        if self.number == 0:
            return self.run.start
        return latest(self.run.folder, lambda text: self.emit(Warned(text)))

    def _epoch(self, run: Run, schedule: RunSchedule) -> int:
        """The epoch, from 0, of the generation's first round; the run's last also after its end."""
        if self.state is None:
            return epoch_of(run, schedule)
        return min(self.state.position.epoch, self.state.schedule.epochs - 1)

    def _resume_state(
        self, run: Run, schedule: RunSchedule, joins: Joins, present: Sequence[int]
    ) -> tuple[int, ...]:
        """Set `state` to that of the generation's first round; returns the students to restore."""
        if self.state is None:
            self.roster.enter(present)
            classes = next(iter(joins.values())).info.classes
            kept = self.memory.own_state()
            self.state = CoordinatorState.of(run, schedule, classes, self.tracking, kept)
            self.roster.absences.rewind(run.start)
            return tuple(present)
        state, positions = self.state, {rank: join.position for rank, join in joins.items()}
        state.position, restored = self.roster.resume(present, positions, state.position)
        state.interrupt(restored)
        now = state.position.step, schedule.steps_per_epoch
        for line in self.roster.begin(present, restored, *now, run.start):
            self.emit(Note(line))
        return tuple(restored)

    def _record_start(self, run: Run, schedule: RunSchedule, workers: Sequence[WorkerInfo]) -> None:
        assert self.state is not None
        stored, epoch = self.state.aggregator.stored.fingerprints, self._epoch(run, schedule)
        self.past.settle()
        record_start(run, self.roster, workers, stored, epoch, schedule.steps_per_epoch)

    def _recover(self, cause: KdclError) -> None:
        """Prepare the next generation as the recovery policy decides; raises the cause where the run ends."""
        failure = self.recipe.failure
        if isinstance(cause, CoordinatorLost) and len(self.past.causes) < failure.allowed:
            self.monitor.check_own_store(self.host)
        lost = self._lost(cause)
        decision = decide(failure, self.past.causes, cause, has_state=self.state is not None)
        if decision is Decision.END:
            if failure.policy == "stop" and survivors_can_continue(cause):
                self._save_survivors(lost)
            raise cause
        self.memory.judge(cause)
        if decision is Decision.CONTINUE:
            self.roster.remove(lost)
            consequence = self.roster.consequence(lost)
        else:
            self._discard_state()
            consequence = self.memory.consequence()
        self._survive(cause, consequence)

    def _survive(self, cause: KdclError, consequence: str) -> None:
        """Count a failure, end the processes that are lost, which are then replaced, and say what follows."""
        failure = self.recipe.failure
        self.past.add(cause)
        if self.processes is not None:
            for name, pid in self.monitor.lost:
                self.processes.end(name, pid)
        count = f"failure {len(self.past.causes)} of at most {failure.max_failures}"
        self.emit(Note(f"{cause}; {consequence} ({count}, failure.max_failures)"))

    def _save_survivors(self, lost: set[int]) -> None:
        """Run a generation of the survivors that only takes a checkpoint; of those that survive it, again."""
        self.roster.away |= lost
        if self.state is None or not self.roster.has_quorum():
            return
        self.number += 1
        try:
            self._run_generation(lambda: True, alone=True)
            step = None if self.state.saved is None else self.state.saved.step
            self.emit(Note(f"the state of the others at step {step} is saved: --resume goes on from there"))
        except Exception as error:
            self.emit(Warned(f"the others could not save their state: {error}"))
            cause = wrap(error, student=None, step=None, phase=self.monitor.heartbeat.phase)
            if another := self._lost(cause) - self.roster.away:
                self._save_survivors(another)

    def _lost(self, cause: KdclError) -> set[int]:
        """The students that a failure of this generation has cost."""
        return self.roster.named({name for name, _ in self.monitor.lost} | {cause.student})

    def _discard_state(self) -> None:
        """Forget the state that is not of a checkpoint."""
        if self.state is not None:
            self.state.close()
        self.state = None
        self.roster.clear()

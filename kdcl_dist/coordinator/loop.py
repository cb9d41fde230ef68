"""What the coordinator's process runs: the same schedule as the students, from the other side."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from kdcl_dist.config.rounds import Kind, Round, RunSchedule
from kdcl_dist.coordinator.aggregator import Aggregator, Answer
from kdcl_dist.coordinator.logit_bank import PREFIX, make_bank
from kdcl_dist.coordinator.metrics_collector import MetricsCollector
from kdcl_dist.coordinator.validation import check_messages
from kdcl_dist.coordinator.window_check import make_window_check
from kdcl_dist.errors import KdclError, StorageError
from kdcl_dist.exchange.group import Exchange
from kdcl_dist.exchange.layout import sends_target
from kdcl_dist.exchange.message import Flag, Message
from kdcl_dist.membership.monitor import COORDINATOR
from kdcl_dist.run.checkpoint import Manifest, Part, commit, copy_part, prune, read_part, write_part
from kdcl_dist.run.events import CheckpointSaved, Event, Note, Stepped, Warned
from kdcl_dist.run.record import check_owner, update_record
from kdcl_dist.run.run import Run

__all__ = ["CoordinatorLoop", "CoordinatorState"]

#: Seconds between two `Stepped` events.
EMIT_S = 0.2
#: Seconds between two looks for students that return.
LOOK_S = 0.5
#: Seconds for which a write that can wait is tried while the students do.
HASTE_S = 3.0


class _Step(NamedTuple):
    """A training step that was answered."""

    answer: Answer
    ensemble_s: float


@dataclass
class CoordinatorState:
    """What the coordinator keeps from round to round, and from one generation to the next that goes on.

    Attributes:
        position: the round that it takes next.
        saved: the latest checkpoint.
    """

    aggregator: Aggregator
    metrics: MetricsCollector
    position: Round
    saved: Manifest | None

    @classmethod
    def of(cls, run: Run, schedule: RunSchedule, classes: int) -> CoordinatorState:
        """As a run's start has it."""
        bank = make_bank(run.recipe, schedule.samples, classes)
        aggregator = Aggregator(run.recipe, bank, make_window_check(run.recipe, schedule))
        state = cls(aggregator, MetricsCollector(run, schedule), schedule.first(run.step), run.start)
        if run.start is not None:
            saved = read_part(run.folder, run.start, COORDINATOR)
            aggregator.load_state_dict(saved["coordinator"])
            state.metrics.load_state_dict(saved)
            if bank is not None:
                for name in (name for name in run.start.parts if name.startswith(PREFIX)):
                    bank.load(read_part(run.folder, run.start, name))
        return state

    def close(self) -> None:
        """Close its files."""
        self.metrics.close()
        if self.aggregator.bank is not None:
            self.aggregator.bank.close()


class CoordinatorLoop:
    """The coordinator's walk through the schedule, in one generation of the exchange group.

    Args:
        run, schedule: the run, and its schedule.
        state: what it knows; kept up to date.
        present: places of the students that take part.
        exchange: with them.
        stop: asked at each step whether the run shall stop, with a checkpoint.
        returns: asked now and then whether a student that is absent is ready to join again.
        notice: asked now and then for a reason to take a checkpoint before the next of the schedule.
        emit: hears what happens.
    """

    def __init__(
        self,
        run: Run,
        schedule: RunSchedule,
        state: CoordinatorState,
        present: Sequence[int],
        exchange: Exchange,
        *,
        stop: Callable[[], bool],
        returns: Callable[[], bool],
        notice: Callable[[], str | None],
        emit: Callable[[Event], None],
    ) -> None:
        self.run_, self.recipe, self.schedule, self.state = run, run.recipe, schedule, state
        self.exchange, self.stop, self.emit = exchange, stop, emit
        self.returns, self.notice = returns, notice
        self.workers = [worker for worker in run.recipe.workers if worker.student in present]
        self.present = state.aggregator.present = list(present)
        self.aggregator, self.metrics = state.aggregator, state.metrics
        self.hasty = run.folder.with_limit(HASTE_S)
        self.step: _Step | None = None
        self.stopping = False
        self.skipped: set[int] = set()
        self.emitted = self.looked = 0.0

    def run(self) -> Flag:
        """Take every round to the run's end, or to the first after which it stops or forms anew."""
        for round in self.schedule.rounds(self.state.position):
            after = self.schedule.after(round)
            flags = self._take(round, after)
            self.state.position = after
            if round.kind is Kind.TRAIN and flags & (
                Flag.STOP | Flag.SAVE
            ):  # one that the schedule does not have
                self._take(Round(Kind.CHECKPOINT, round.epoch, round.step + 1), after)
            if Flag.STOP in flags:
                self._warn_of(self.metrics.flush(HASTE_S))
                self._warn_of(_try(lambda: update_record(self.hasty, state="interrupted")))
            if flags & (Flag.STOP | Flag.REFORM):
                return flags
        return Flag.NONE

    def _take(self, round: Round, after: Round) -> Flag:
        """One round: gather, check, answer; then note the step, while the students learn from it.

        Args:
            round: what is to be done.
            after: the round of the schedule that follows.
        """
        exchange, heartbeat = self.exchange, self.exchange.monitor.heartbeat
        heartbeat.enter("gather", round.step)
        exchange.outgoing.reset(round.kind, round.step, round.part)
        limits = self.recipe.limits
        messages = exchange.gather(limits.startup_s if round.kind is Kind.CHECKPOINT else None)
        exchange.answer.reset(round.kind, round.step, round.part)  # the one before has left by now
        exchange.answer.header["busy_s"] = max(float(message.header["busy_s"]) for message in messages)
        heartbeat.enter("ensemble")
        with_rows = round.kind is Kind.TRAIN and sends_target(self.recipe)
        try:
            self._answer(round, messages)
        except KdclError as error:
            exchange.monitor.report(error.at(step=round.step, phase="ensemble"))
            exchange.answer.header["flags"] = Flag.REFUSED
            exchange.broadcast(with_rows)
            raise
        if round.kind is not Kind.TRAIN:  # is done, whether or not all hear of it
            self.state.position = after
        if self._may_stop(round) and (self.stop() or any(Flag.STOP in m.flags for m in messages)):
            exchange.answer.header["flags"] = Flag.STOP
        elif round.kind is Kind.TRAIN:
            exchange.answer.header["flags"] = self._interruption(round)
        heartbeat.enter("broadcast")
        flags = self._give(round, with_rows)
        heartbeat.enter("record")
        self._note_step(round)
        return flags

    def _give(self, round: Round, with_rows: bool) -> Flag:
        """Give all the answer; its flags.

        After the last one each student leaves by itself, and all is saved: who does not get it hears from the
        monitor that the run has ended, and nobody is waited for.
        """
        exchange, flags = self.exchange, self.exchange.answer.flags
        self.stopping |= Flag.STOP in flags
        if round.kind is Kind.END or (round.kind is Kind.CHECKPOINT and self.stopping):
            with contextlib.suppress(KdclError):
                exchange.broadcast(with_rows)
                exchange.flush()
            return flags
        return exchange.broadcast(with_rows).flags

    def _answer(self, round: Round, messages: Sequence[Message]) -> None:
        check_messages(messages, self.workers, round, run=self.run_.number, generation=self.run_.generation)
        self._collect_step_metrics(messages)
        if round.kind is Kind.TRAIN:
            self._train(round, messages)
        elif round.kind is Kind.HOLDOUT:
            self._holdout(round, messages)
        elif round.kind is Kind.EVALUATE:
            self._evaluate(round, messages)
        elif round.kind is Kind.CHECKPOINT:
            self.exchange.monitor.heartbeat.enter("checkpoint")
            self._checkpoint(round, messages)
        else:
            self._finish()

    def _collect_step_metrics(self, messages: Sequence[Message]) -> None:
        """Take the figures of each student's last training step."""
        step_metrics = [message.step_metrics for message in messages]
        for line in self.metrics.step_metrics(self.workers, step_metrics):
            self.emit(Warned(f"{line}"))
        skipped = {
            m.student: int(own.step) for m, own in zip(self.workers, step_metrics, strict=True) if own.skipped
        }
        self.skipped |= set(skipped)
        for index, step in skipped.items():
            if index not in self.aggregator.bad_steps:
                where = f"the gradient of {self.recipe.names[index]} at step {step}"
                self.emit(Warned(f"{where} is NaN or infinite: it skips this step"))

    def _interruption(self, round: Round) -> Flag:
        """Whether the cohort forms anew, or takes a checkpoint before the next of the schedule."""
        if time.monotonic() - self.looked < LOOK_S:
            return Flag.NONE
        self.looked = time.monotonic()
        if len(self.present) < len(self.recipe.students) and self.returns():
            return Flag.REFORM
        if self._may_stop(round) and (notice := self.notice()) is not None:
            self.emit(Note(f"{notice}: all take a checkpoint"))
            return Flag.SAVE
        return Flag.NONE

    def _may_stop(self, round: Round) -> bool:
        """Where the run can be taken up again: between steps of an epoch, and after a checkpoint."""
        if round.kind is Kind.TRAIN:
            return (round.step + 1) % self.schedule.steps_per_epoch != 0
        return round.kind is Kind.CHECKPOINT and round.epoch + 1 < self.schedule.epochs

    def _train(self, round: Round, messages: Sequence[Message]) -> None:
        started = time.perf_counter()
        answer = self.aggregator.answer(self.aggregator.parts(messages), round.step)
        self._exclude(answer.bad, round)
        if answer.target is not None:
            own = self.exchange.answer
            # In half precision a tiny probability's logarithm would be infinite.
            lowest = torch.finfo(own.layout.dtype).min
            own.write_rows(answer.target.ids, answer.target.log_probabilities.clamp(min=lowest))
        self.step = _Step(answer, time.perf_counter() - started)

    def _exclude(self, bad: Sequence[int], round: Round) -> None:
        """Go on without the students whose logits of this step are not finite, but not for long."""
        news = [self.recipe.names[index] for index in bad if index not in self.aggregator.bad_steps]
        self.aggregator.check_bad(sorted({*bad, *self.skipped}), self.recipe.failure.max_bad_steps)
        self.skipped.clear()
        if bad:
            self.exchange.answer.exclude(bad)
        if news:
            self.emit(
                Warned(
                    f"logits of {', '.join(news)} at step {round.step} are NaN or infinite: the "
                    "others learn without them, and they skip this step"
                )
            )

    def _note_step(self, round: Round) -> None:
        if self.step is None:
            return
        self.metrics.step(round, *self.step)
        if self.recipe.analysis.measures(round.step):
            self.metrics.analysis(round, self.step.answer, self.aggregator.weights_S)
        self.step = None
        if time.monotonic() - self.emitted > EMIT_S:
            self.emitted = time.monotonic()
            self.emit(Stepped(round.step + 1, self.metrics.running()))

    def _holdout(self, round: Round, messages: Sequence[Message]) -> None:
        if round.part == 0:
            self.aggregator.begin_holdout()
        self.aggregator.add_holdout(self.aggregator.align(messages))
        if round.part + 1 == self.schedule.holdout_batches:
            self.aggregator.update_weights()
            self.metrics.weights(round, self.aggregator.weights_S)

    def _evaluate(self, round: Round, messages: Sequence[Message]) -> None:
        aligned = self.aggregator.align(messages)
        self.metrics.test(round, self.present, aligned, self.aggregator.predict(aligned))
        if round.part + 1 == self.schedule.test_batches:
            self.exchange.monitor.heartbeat.enter("record")
            check_owner(self.run_)
            self.emit(self.metrics.end_epoch(round))
            self._warn_of(self.metrics.flush(HASTE_S))

    def _checkpoint(self, round: Round, messages: Sequence[Message]) -> None:
        check_owner(self.run_)
        folder = self.run_.folder
        state = {"coordinator": self.aggregator.state_dict()} | self.metrics.state_dict()
        own = write_part(folder, round.step, COORDINATOR, state)
        parts = {
            self.recipe.names[worker.student]: Part(
                bytes(message.header["digest"]).hex(), int(message.header["bytes"])
            )
            for worker, message in zip(self.workers, messages, strict=True)
            if worker.replica == 0
        }
        if (earlier := self.state.saved) is not None:
            absent = [name for name in self.recipe.names if name not in parts and name in earlier.parts]
            parts |= {name: copy_part(folder, earlier, round.step, name) for name in absent}
        if (bank := self.aggregator.bank) is not None:
            parts |= {
                name: write_part(folder, round.step, name, part) for name, part in bank.parts(round.step)
            }
        manifest = Manifest(round.step, parts | {COORDINATOR: own})
        commit(folder, manifest)
        self.state.saved = manifest
        self.emit(CheckpointSaved(round.step))
        self._warn_of(_try(lambda: prune(self.hasty, self.recipe.checkpoint.keep)))

    def _finish(self) -> None:
        """Note the end. The last checkpoint has all: who cannot write here can resume and write then."""
        self.exchange.monitor.heartbeat.enter("record")
        try:
            if (error := self.metrics.flush(self.recipe.limits.patience_s)) is not None:
                raise error
            update_record(self.run_.folder, state="finished", results=self.metrics.results)
        except StorageError as error:
            error.message += "; the training is complete and saved: --resume writes what is missing"
            raise

    def _warn_of(self, error: StorageError | None) -> None:
        """What the storage did not take but the training can do without for now."""
        if error is not None:
            self.emit(Warned(f"{error.message}; training goes on, this is tried again"))


def _try(operation: Callable[[], None]) -> StorageError | None:
    try:
        operation()
    except StorageError as error:
        return error
    return None

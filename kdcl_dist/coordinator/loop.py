"""The coordinator's rounds: the same schedule as the students' (`kdcl_dist.student.loop`)."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence

from kdcl_dist.config.rounds import Kind, Round, RunSchedule
from kdcl_dist.coordinator.aggregator import Answer
from kdcl_dist.coordinator.aligned_logits import Arrivals
from kdcl_dist.coordinator.answering import answer_round, gather_rows
from kdcl_dist.coordinator.assistants import Assistants
from kdcl_dist.coordinator.checkpointing import CoordinatorState, save_checkpoint, student_parts
from kdcl_dist.coordinator.folder_care import FolderCare
from kdcl_dist.coordinator.live_change import LiveChange
from kdcl_dist.coordinator.memory_checkpoints import MemoryCheckpoints
from kdcl_dist.coordinator.run_end import record_end
from kdcl_dist.coordinator.step_sums import StepSums
from kdcl_dist.coordinator.validation import check_messages
from kdcl_dist.errors import KdclError
from kdcl_dist.exchange.group import Exchange
from kdcl_dist.exchange.message import Flag, Message
from kdcl_dist.run.checkpoint import prune
from kdcl_dist.run.events import CheckpointSaved, Evaluating, Event, Note, Stepped, Values, Warned
from kdcl_dist.run.record import update_record
from kdcl_dist.run.run import Run

__all__ = ["CoordinatorLoop"]

#: Seconds between two `Stepped` or `Evaluating` events.
EMIT_S = 0.2
#: Seconds between two checks for returning students, changes of the cohort and termination notices.
POLL_S = 0.5


class CoordinatorLoop:
    """The coordinator's rounds in one generation of the exchange group.

    Args:
        run: the run.
        state: of the coordinator, with the students that take part; kept up to date.
        exchange: the group.
        memory: the checkpoints in memory.
        stop: asked at each step whether the run shall stop, with a checkpoint.
        has_returned: asked now and then whether an absent student is ready to join again.
        change: asked now and then whether the cohort can change.
        notice: asked now and then for a reason to take a checkpoint before the next of the schedule.
        emit: called with each event.
    """

    def __init__(
        self,
        run: Run,
        state: CoordinatorState,
        exchange: Exchange,
        memory: MemoryCheckpoints,
        *,
        stop: Callable[[], bool],
        has_returned: Callable[[], bool],
        change: LiveChange,
        notice: Callable[[], str | None],
        emit: Callable[[Event], None],
    ) -> None:
        self.run, self.recipe, self.state = run, run.recipe, state
        self.exchange, self.stop, self.emit = exchange, stop, emit
        self.has_returned, self.change, self.notice = has_returned, change, notice
        self.memory = memory
        self.present = state.aggregator.present
        self.workers = [worker for worker in run.recipe.workers if worker.student in self.present]
        self.aggregator, self.metrics = state.aggregator, state.metrics
        self.assistants = Assistants(exchange)
        self.folder = FolderCare(run, emit)
        self.arrivals = Arrivals(0)  # of this round's messages
        self.step: tuple[Answer, float] | None = None  # not recorded yet, and its seconds
        self.stopping = False
        self.skipped, self.bad = set[int](), set[int]()
        self.last_emitted_s = self.last_polled_s = 0.0

    @property
    def schedule(self) -> RunSchedule:
        """The schedule of the run's rounds."""
        return self.state.schedule

    def run_rounds(self) -> Flag:
        """Run the rounds to the run's end, or to the first that stops the run or ends the generation."""
        flags = self._run_rounds()
        self.assistants.dismiss(self.state.position, self.aggregator.weights_S, flags)
        return flags

    def _run_rounds(self) -> Flag:
        while True:
            round = self.state.position
            flags = self._run_round(round)
            if round.kind is Kind.TRAIN:
                self.state.position = self.schedule.after(round)
            if round.kind is Kind.TRAIN and flags & (Flag.STOP | Flag.SAVE):
                # This checkpoint is not in the schedule.
                self._run_round(Round(Kind.CHECKPOINT, round.epoch, round.step + 1))
            if Flag.STOP in flags:
                self.folder.attempt(lambda: self.metrics.flush(self.folder.brief.limit_s))
                self.folder.attempt(lambda: update_record(self.folder.brief, state="interrupted"))
            if flags & (Flag.STOP | Flag.REFORM):
                return flags
            if round.kind is Kind.END:
                return Flag.NONE

    def _run_round(self, round: Round) -> Flag:
        """Gather, check and answer; then record the step while the students learn from it."""
        exchange, heartbeat = self.exchange, self.exchange.monitor.heartbeat
        messages = self._gather(round)
        exchange.answer.reset(round.kind, round.step, round.part)  # the answer before has left by now
        exchange.answer.header["busy_s"] = max(float(message.header["busy_s"]) for message in messages)
        heartbeat.enter("ensemble")
        with_rows = round.kind is Kind.TRAIN and self.recipe.answers_rows
        try:
            self._process(round, messages)
        except KdclError as error:
            exchange.monitor.report(error.at(step=round.step, phase="ensemble"))
            exchange.answer.header["flags"] = Flag.REFUSED
            exchange.broadcast(with_rows)
            raise
        if round.kind is not Kind.TRAIN and round == self.state.position:
            # Done even if the answer does not reach all. A checkpoint outside the schedule is at no position.
            self.state.position = self.schedule.after(round)
        if self._stops(round, messages):
            exchange.answer.header["flags"] = Flag.STOP
        elif round.kind is Kind.TRAIN:
            flags = self._interruption(round)
            exchange.answer.header["flags"] = flags or self.memory.ask(self.run.generation, round, self.state)
        elif self.schedule.changes_cohort(round):
            exchange.answer.header["flags"] = Flag.REFORM
        heartbeat.enter("broadcast")
        flags = self._broadcast(round, with_rows)
        heartbeat.enter("record")
        self._record_step(round)
        return flags

    def _gather(self, round: Round) -> Sequence[Message]:
        self.exchange.monitor.heartbeat.enter("gather", round.step)
        self.exchange.outgoing.reset(round.kind, round.step, round.part)
        self.assistants.order(round, self.aggregator.weights_S)
        if round.kind is not Kind.TRAIN:
            return self.exchange.gather(self.recipe.limits.startup_s if round.uses_checkpoints else None)
        messages, self.arrivals = gather_rows(self.exchange, self.recipe, self.workers)
        return messages

    def _broadcast(self, round: Round, with_rows: bool) -> Flag:
        """Send the answer to all students; returns its flags.

        After the last answer of a run everything is saved and each student leaves by itself. A student that
        does not get the answer learns from the monitor that the run has ended. The coordinator does not wait.
        """
        exchange, flags = self.exchange, self.exchange.answer.flags
        self.stopping |= Flag.STOP in flags
        if round.kind is Kind.END or (round.kind is Kind.CHECKPOINT and self.stopping):
            with contextlib.suppress(KdclError):
                exchange.broadcast(with_rows)
                exchange.flush()
            return flags
        try:
            return exchange.broadcast(with_rows).flags
        except KdclError:
            self._record_logits(round)  # a student that has the answer learns from them all the same
            raise

    def _process(self, round: Round, messages: Sequence[Message]) -> None:
        identity, rows = (self.run.number, self.run.generation), self.assistants.share_rows(round)
        check_messages(messages, self.workers, round, identity, rows)
        self._collect_step_metrics(messages)
        self.memory.keep(round, self.state)
        if self.metrics.awaits_end(round):
            self._end_epoch()
        if round.kind is Kind.TRAIN:
            self._train(round, messages)
        elif round.kind is Kind.HOLDOUT:
            self._holdout(round, messages)
        elif round.kind in (Kind.VALIDATE, Kind.EVALUATE, Kind.BEST):
            self._evaluate(round, messages)
        elif round.kind is Kind.CHECKPOINT:
            self.exchange.monitor.heartbeat.enter("checkpoint")
            self._checkpoint(round, messages)
        else:
            self._finish()

    def _collect_step_metrics(self, messages: Sequence[Message]) -> None:
        """Record the metrics of each student's last training step."""
        step_metrics = [message.step_metrics for message in messages]
        for line in self.metrics.step_metrics(self.workers, step_metrics):
            self.emit(Warned(line))
        skipped = {
            worker.student: int(own.step)
            for worker, own in zip(self.workers, step_metrics, strict=True)
            if own.skipped
        }
        self.skipped |= set(skipped)
        for index, step in skipped.items():
            if index not in self.aggregator.bad_steps:
                where = f"the gradient of {self.recipe.names[index]} at step {step}"
                self.emit(Warned(f"{where} is NaN or infinite: it skips this step"))

    def _interruption(self, round: Round) -> Flag:
        """Whether the cohort forms anew, or takes a checkpoint before the next of the schedule.

        Neither happens within a step.
        """
        if not self.schedule.ends_step(round) or time.monotonic() - self.last_polled_s < POLL_S:
            return Flag.NONE
        self.last_polled_s = time.monotonic()
        some_away = len(self.present) < len(self.aggregator.members)
        if (some_away and self.has_returned()) or self.change.is_due(round.epoch):
            return Flag.REFORM
        if self.schedule.can_resume_after(round) and (notice := self.notice()) is not None:
            self.emit(Note(f"{notice}: all take a checkpoint"))
            return Flag.SAVE
        return Flag.NONE

    def _stops(self, round: Round, messages: Sequence[Message]) -> bool:
        """Whether the run stops after a round, since it is asked to."""
        asked = self.schedule.can_resume_after(round)
        return asked and (self.stop() or any(message.has(Flag.STOP) for message in messages))

    def _train(self, round: Round, messages: Sequence[Message]) -> None:
        started_s = time.perf_counter()
        answer = answer_round(self.aggregator, messages, round, self.exchange.answer, self.arrivals)
        self._exclude(answer.bad, round)
        self.step = answer, time.perf_counter() - started_s

    def _exclude(self, bad: Sequence[int], round: Round) -> None:
        """Exclude the students whose logits of this part are not finite; too many such steps are an error."""
        known = {*self.aggregator.bad_steps, *self.bad}
        news = [self.recipe.names[index] for index in bad if index not in known]
        self.bad |= set(bad)
        if self.schedule.ends_step(round):
            self.aggregator.check_bad(sorted(self.bad | self.skipped), self.recipe.failure.max_bad_steps)
            self.skipped, self.bad = set(), set()
        if bad:
            self.exchange.answer.exclude(bad)
        if news:
            self.emit(
                Warned(
                    f"logits of {', '.join(news)} at step {round.step} are NaN or infinite: the "
                    "others learn without them, and they skip this step"
                )
            )

    def _record_step(self, round: Round) -> None:
        self._record_logits(round)
        if self.step is None:
            return
        (answer, ensemble_s), self.step = self.step, None
        sums = StepSums.of(self.recipe, answer, self.aggregator.weights_S, ensemble_s, round.step)
        self.assistants.add_reports(sums)
        self.metrics.step(round, answer.bad, sums)
        if self.schedule.ends_step(round) and self._may_emit():
            self.emit(Stepped(round.step + 1, self.metrics.latest()))

    def _record_logits(self, round: Round) -> None:
        if self.step is not None:
            self.state.record.add(round.epoch, self.step[0], self.aggregator.predict)

    def _may_emit(self) -> bool:
        """Whether the last event of this kind was long enough ago; then one follows now."""
        now_s = time.monotonic()
        if now_s - self.last_emitted_s <= EMIT_S:
            return False
        self.last_emitted_s = now_s
        return True

    def _holdout(self, round: Round, messages: Sequence[Message]) -> None:
        if round.part == 0:
            self.aggregator.begin_holdout()
        aligned = self.aggregator.align(messages, round.kind)
        self.aggregator.add_holdout(aligned)
        self.state.record.add_held_out(aligned, self.aggregator.senders, self.aggregator.predict)
        if round.part + 1 == self.schedule.holdout_batches:
            self.aggregator.update_weights()
            self.metrics.weights(round, self.aggregator.weights_S, self.aggregator.members)

    def _evaluate(self, round: Round, messages: Sequence[Message]) -> None:
        aligned = self.aggregator.align(messages, round.kind)
        self.metrics.test(round, self.present, aligned, self.aggregator.predict(aligned))
        if not self.schedule.ends_test(round):
            if self._may_emit():
                batches = self.schedule.test_passes * self.schedule.batches(round.kind)
                self.emit(Evaluating(round.step, round.part + 1, batches))
            return
        if round.kind is Kind.BEST:
            self.metrics.end_best(round, self.state.bests())
            return
        results = self.metrics.end_test(round)
        if round.kind is Kind.VALIDATE:
            self._validated(round, results)
        if self.schedule.ends_tests(round):
            self._end_epoch()

    def _validated(self, round: Round, results: Values) -> None:
        """Keep the results of a test, and end the run with this epoch if they say so."""
        students = [self.recipe.names[index] for index in self.aggregator.senders]
        self.state.validation.add(round.epoch, round.step, results, students)
        if (why := self.state.stop_early()) is not None:
            self.exchange.answer.header["flags"] = Flag.LAST
            self.emit(Note(why))

    def _end_epoch(self) -> None:
        self.exchange.monitor.heartbeat.enter("record")
        self.folder.check()
        self.emit(self.metrics.end_epoch())
        self.folder.attempt(lambda: self.metrics.flush(self.folder.brief.limit_s))

    def _checkpoint(self, round: Round, messages: Sequence[Message]) -> None:
        self.folder.check()
        parts = student_parts(self.recipe.names, self.workers, messages)
        save_checkpoint(self.run, self.state, round.step, parts, self.memory.state_of)
        self.memory.clear()
        self.emit(CheckpointSaved(round.step))
        keep = self.recipe.checkpoint.keep
        self.folder.attempt(lambda: prune(self.folder.brief, keep, self.state.best_steps))

    def _finish(self) -> None:
        self.exchange.monitor.heartbeat.enter("record")
        self.folder.check()
        record_end(self.run, self.state, self.emit, restored=self.folder.restored)

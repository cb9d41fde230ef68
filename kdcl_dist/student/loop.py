"""A student's rounds of the schedule, one after another."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import NamedTuple

from torch import Tensor

from kdcl_dist.config.rounds import Kind, Round
from kdcl_dist.config.student import Worker
from kdcl_dist.data.loader import Batch
from kdcl_dist.data.training_data import TrainingData
from kdcl_dist.errors import CheckpointError, KdclError
from kdcl_dist.exchange.alignment import OwnRows
from kdcl_dist.exchange.group import Exchange
from kdcl_dist.exchange.message import Flag, Message
from kdcl_dist.exchange.replicas import broke_off
from kdcl_dist.membership.generation_spec import GenerationSpec
from kdcl_dist.models.remote.network import asked_ahead
from kdcl_dist.run.checkpoint import read_manifest, read_part, write_part
from kdcl_dist.run.run import Run
from kdcl_dist.run.validation import best_of
from kdcl_dist.student.answer_reader import AnswerReader
from kdcl_dist.student.keeper import StateKeeper
from kdcl_dist.student.step_part import StepPart, metrics_of
from kdcl_dist.student.step_tape import Lesson
from kdcl_dist.student.student import Student
from kdcl_dist.student.verification import Verification

__all__ = ["StudentLoop"]


class _Ahead(NamedTuple):
    """What is done before the answer is there.

    task: the cross-entropy. rows: where the samples are in the answer. has_gradient: whether the backward
    pass is done.
    """

    task: Tensor
    rows: OwnRows
    has_gradient: bool


class StudentLoop:
    """One student's rounds in one generation of the exchange group.

    Attributes:
        schedule: of the run; early stopping shortens it.
        position: the next round.
        prefetched: the next step's batch, if it is loaded already; prefetch_s: seconds that the loading took.
        ahead_s: seconds that this student worked between its message and the wait for the answer.
        parts: what the current training step has come to; its end is sent with the next message.
        left_out: whether the student skips the current step.
        paused: whether its method lets it learn nothing from the current step.
        answer_received_s: when the last answer arrived, by `time.perf_counter`.
    """

    def __init__(
        self,
        run: Run,
        worker: Worker,
        student: Student,
        training_data: TrainingData,
        exchange: Exchange,
        generation: GenerationSpec,
        stop: Callable[[], bool],
        *,
        keeper: StateKeeper,
    ) -> None:
        self.run, self.worker, self.student, self.training_data = run, worker, student, training_data
        self.exchange, self.stop, self.keeper = exchange, stop, keeper
        self.answers = AnswerReader(student, worker.student, generation.students)
        self.schedule = replace(training_data.schedule, epochs=generation.epochs)
        self.position = generation.at
        self.verification = Verification(student, self.schedule)
        self.batches = self._batches()
        self.parts: list[StepPart] = []
        self.left_out = self.paused = False
        self.answer_received_s = time.perf_counter()
        self.prefetched: Batch | None = None
        self.prefetch_s = self.ahead_s = 0.0
        distillation = training_data.recipe.distillation
        self.learns_alone = not distillation.sends_target and not distillation.peers

    def run_rounds(self) -> Flag:
        """Run the rounds to the run's end, or to the first that stops the run or ends the generation."""
        while True:
            round = self.position
            flags = self._run_round(round)
            if Flag.LAST in flags:
                self.schedule = replace(self.schedule, epochs=round.epoch + 1)
            self.position = self.schedule.after(round)
            if Flag.KEEP in flags and self.worker.replica == 0:  # the others have the same state
                self.keeper.keep(f"{self.run.generation}/{self.position.step}", self.student)
            if Flag.LAST in flags:  # the batches that are loaded ahead are of rounds that do not come
                self.batches = self._batches()
            if round.kind is Kind.TRAIN and flags & (Flag.STOP | Flag.SAVE):
                # This checkpoint is not in the schedule.
                self._run_round(Round(Kind.CHECKPOINT, round.epoch, round.step + 1))
            if flags & (Flag.STOP | Flag.REFORM):
                return flags
            if round.kind is Kind.END:
                return Flag.NONE

    def _batches(self) -> Iterator[Batch]:
        """The batches of all rounds from the next on."""
        student, replica = self.worker.student, self.worker.replica
        batches = self.training_data.batches(student, self.position, replica, self.schedule)
        return asked_ahead(self.student.model, batches)

    def _run_round(self, round: Round) -> Flag:
        try:
            return self._dispatch(round)
        except RuntimeError as error:
            if self.student.replicas is not None and broke_off(error):
                raise self.exchange.diagnose(error) from error
            raise

    def _dispatch(self, round: Round) -> Flag:
        self.exchange.monitor.heartbeat.enter("data", round.step)
        if round.kind is Kind.TRAIN:
            return self._train(round)
        if round.kind is Kind.CHECKPOINT:
            return self._checkpoint(round)
        if round.kind is Kind.END:
            self._start_message(round)
            return self._round_trip(round).flags
        return self._predict(round)

    def _train(self, round: Round) -> Flag:
        """A part of a training step: forward pass, send the logits, receive the soft target, learn."""
        student, sent, enter = self.student, self.exchange.outgoing, self.exchange.monitor.heartbeat.enter
        if round.part == 0:
            self.left_out = self.paused = False
        started_s, earlier_s = time.perf_counter(), self.ahead_s
        batch = self._next_batch()
        loaded_s = time.perf_counter()
        enter("forward")
        learns = student.learns(round.epoch)
        self.verification.begin(round, batch.inputs, learns)
        logits_BC = student.forward(batch.inputs, round.step, round.part, learns=learns)
        self._start_message(round)
        contribution_BC = student.contribution(logits_BC, round.step, round.part)
        sent.write_rows(batch.ids, contribution_BC, batch.labels)
        computed_s = time.perf_counter()
        busy_s = sent.header["busy_s"] = earlier_s + computed_s - self.answer_received_s
        ahead, answer = self._exchange_rows(round, logits_BC, batch, learns)
        enter("backward")
        part = self._learn(round, logits_BC, batch, ahead, answer)
        self.verification.end(round, logits_BC, sent, part)
        ended_s = time.perf_counter()
        # The slowest student does not wait; each of the others waits for as long as it was faster.
        slowest_s = float(answer.header["busy_s"])
        idle_s = self.answer_received_s - computed_s - self.ahead_s
        wait_s = min(max(0.0, slowest_s - busy_s), idle_s)
        if part is not None:
            part.figures |= {
                "data_s": loaded_s - started_s + self.prefetch_s,
                "forward_s": computed_s - loaded_s,
                "wait_s": wait_s,
                "exchange_s": idle_s - wait_s,
                "backward_s": ended_s - self.answer_received_s + self.ahead_s - self.prefetch_s,
                "step_s": ended_s - started_s,
                "load_s": batch.load_s,
            }
            self.parts.append(part)
        return answer.flags

    def _exchange_rows(
        self, round: Round, logits_BC: Tensor, batch: Batch, learns: bool
    ) -> tuple[_Ahead, Message]:
        """Send the logits, and receive the answer; what does not need it is done meanwhile."""
        with_rows = self.student.recipe.answers_rows
        try:
            self._send()
            self.exchange.post_receive(with_rows)
            sent_s = time.perf_counter()
            self._prefetch(round)
            ahead = self._work_ahead(round, logits_BC, batch, learns)
            self.ahead_s = time.perf_counter() - sent_s
            return ahead, self._receive(round, with_rows=with_rows)
        except KdclError:
            if learns:
                self.student.undo_forward()  # the cohort may begin this step anew
            raise

    def _next_batch(self) -> Batch:
        """The next batch: the prefetched one, or loaded now."""
        batch, self.prefetched, self.prefetch_s = self.prefetched, None, 0.0
        return next(self.batches) if batch is None else batch

    def _prefetch(self, round: Round) -> None:
        """Load the next batch while this process waits for the others and the coordinator.

        Not beyond an epoch's end: an error in the next epoch's data must not cost the results of this one.
        """
        if self.schedule.ends_epoch(round):
            return
        following = self.schedule.after(round)
        self.student.seed_of(following.step, following.part)  # drawn here, kept for the forward pass
        started_s = time.perf_counter()
        self.exchange.monitor.heartbeat.enter("data", following.step)
        self.prefetched = next(self.batches)
        self.prefetch_s = time.perf_counter() - started_s

    def _work_ahead(self, round: Round, logits_BC: Tensor, batch: Batch, learns: bool) -> _Ahead:
        """What of the learning from a part needs no answer.

        A student that learns alone takes its backward pass: the answer only says whether the step counts. A
        replica does not: while it waits for the others' gradients, it would not hear that one has failed.
        """
        task = self.student.loss.task(logits_BC, batch.loss_labels, batch.ids)
        is_early = self.learns_alone and learns and self.student.replicas is None and not self.left_out
        if is_early:
            self.exchange.monitor.heartbeat.enter("backward", round.step)
            self.student.add_gradient(task)
        return _Ahead(task, OwnRows(batch.ids), is_early)

    def _learn(
        self, round: Round, logits_BC: Tensor, batch: Batch, ahead: _Ahead, answer: Message
    ) -> StepPart | None:
        """Learn from a part if the student learns in this epoch; None if it skips the step.

        A student whose logits of one part are left out skips all of the step; one that pauses in a part does
        not learn from the step.
        """
        student = self.student
        if round.part == 0:
            self.parts = []
        self.left_out |= answer.excludes(self.worker.student)
        if self.left_out:
            student.undo_forward()
            return None
        read = self.answers.read(round, ahead.rows, answer, self.exchange.messages)
        lesson = Lesson(batch.loss_labels, *read, batch.ids)
        self.verification.keep(lesson)
        losses = student.loss(logits_BC, *lesson, task=ahead.task)
        figures: dict[str, float] = {"step": round.step}
        if not student.learns(round.epoch):
            return StepPart.of(figures, losses)
        lr = figures["lr"] = student.lr(round.step, self.schedule.steps_per_epoch)
        if student.recipe.distillation.pauses:
            self.paused |= student.loss.paused
            figures["paused"] = float(self.paused)
        if self.paused:
            student.undo_forward()
            return StepPart.of(figures, losses)
        if student.recipe.analysis.measures(round.step) and losses.distillation.requires_grad:
            found = student.conflict(losses)
            figures |= {"gradient_cosine": found.cosine, "gradient_ratio": found.ratio}
        if not ahead.has_gradient:
            student.add_gradient(losses.total)
        return StepPart.of(figures, losses, student.end_part(lr, round.part))

    def _predict(self, round: Round) -> Flag:
        """One batch of a pass over held-out, validation or test samples, in evaluation mode."""
        if round.part == 0:
            self.student.share_buffers()
            if round.kind is Kind.BEST:
                self._load_best(round.step)
        batch = self._next_batch()
        self.exchange.monitor.heartbeat.enter("evaluation")
        self._start_message(round)
        averaged = self.schedule.test_batch(round)[0] == 1
        logits_BC = self.student.predict(batch.inputs, averaged=averaged)
        self.exchange.outgoing.write_rows(batch.ids, logits_BC, batch.labels)
        return self._round_trip(round, self._limit_s(round)).flags

    def _limit_s(self, round: Round) -> float | None:
        """The limit of a round's transfers; None: that of a step.

        At the run's end the coordinator writes the files of logits before it answers.
        """
        is_long = round.uses_checkpoints or round.kind is Kind.END
        return self.run.recipe.limits.startup_s if is_long else None

    def _load_best(self, step: int) -> None:
        """Take the weights of this student's best epoch, if it has one; the newest are in the checkpoint.

        Args:
            step: of the run's last checkpoint.
        """
        self.exchange.monitor.heartbeat.enter("checkpoint", step)
        folder, name = self.run.folder, self.student.spec.name
        try:
            last = read_manifest(folder, step)
            found = best_of(folder, last, name, self.run.recipe.checkpoint.best)
            if found is not None:
                self.student.load_weights(read_part(folder, found[1], name))
        except CheckpointError as error:
            error.message += "; --resume --set checkpoint.best=null finishes the run without it"
            raise

    def _checkpoint(self, round: Round) -> Flag:
        """Write the student's part and send its hash to the coordinator, whose manifest completes it."""
        self.exchange.monitor.heartbeat.enter("checkpoint", round.step)
        self.verification.check_rest(round.step)
        self.student.share_buffers()
        self._start_message(round)
        if self.worker.replica == 0:  # the others have the same state
            part = write_part(self.run.folder, round.step, self.student.spec.name, self.student.state_dict())
            header = self.exchange.outgoing.header
            header["bytes"], header["digest"] = part.bytes, list(bytes.fromhex(part.sha256))
        return self._round_trip(round, self._limit_s(round)).flags

    def _start_message(self, round: Round) -> None:
        flags = Flag.STOP if self.stop() else Flag.NONE
        self.exchange.outgoing.reset(round.kind, round.step, round.part, flags)

    def _round_trip(self, round: Round, limit_s: float | None = None) -> Message:
        """Send this student's message and receive the coordinator's answer, of a round without rows."""
        self._send(limit_s)
        self.ahead_s = 0.0
        return self._receive(round, with_rows=False, limit_s=limit_s)

    def _send(self, limit_s: float | None = None) -> None:
        """Send this student's message.

        The message carries the metrics of the training step before, once. They are read only now, after the
        logits, so that the host waits for a GPU once a step and not twice.
        """
        self.exchange.monitor.heartbeat.enter("gather")
        if len(self.parts) == self.run.recipe.accumulate:
            self.exchange.outgoing.header["metrics"][:] = metrics_of(self.parts)
            self.parts = []
        self.exchange.gather(limit_s)

    def _receive(self, round: Round, *, with_rows: bool, limit_s: float | None = None) -> Message:
        self.exchange.monitor.heartbeat.enter("broadcast", round.step)
        answer = self.exchange.broadcast(with_rows, limit_s)
        self.answer_received_s = time.perf_counter()
        return answer

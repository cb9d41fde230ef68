"""What a student's process runs: its rounds of the schedule, one after another."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from kdcl_dist.config.rounds import Kind, Round
from kdcl_dist.config.student import Worker
from kdcl_dist.data.loader import Batch
from kdcl_dist.data.training_data import TrainingData
from kdcl_dist.distillation.losses import Losses
from kdcl_dist.exchange.alignment import find_rows, rows_of
from kdcl_dist.exchange.group import Exchange
from kdcl_dist.exchange.layout import sends_target
from kdcl_dist.exchange.message import Flag, Message, StepMetrics, by_student
from kdcl_dist.exchange.replicas import broke_off
from kdcl_dist.membership.rendezvous import GenerationSpec
from kdcl_dist.run.checkpoint import write_part
from kdcl_dist.run.run import Run
from kdcl_dist.student.student import Student

__all__ = ["StudentLoop"]


class StudentLoop:
    """One student's walk through the schedule, in one generation of the exchange group.

    Attributes:
        position: the round that it takes next.
        ahead: the next step's batch, if it is loaded already; ahead_s: seconds that this took.
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
    ) -> None:
        self.run_, self.worker, self.student, self.training_data = run, worker, student, training_data
        self.exchange, self.stop, self.present = exchange, stop, generation.students
        self.position = generation.at
        self.batches = training_data.batches(worker.student, generation.at, worker.replica)
        self.step_metrics = StepMetrics()
        self.losses: Losses | None = None
        self.skipped = torch.zeros(())
        self.answered = time.perf_counter()
        self.ahead: Batch | None = None
        self.ahead_s = 0.0

    def run(self) -> Flag:
        """Take every round to the run's end, or to the first after which it stops or forms anew."""
        schedule = self.training_data.schedule
        for round in schedule.rounds(self.position):
            flags = self._take(round)
            self.position = schedule.after(round)
            if round.kind is Kind.TRAIN and flags & (
                Flag.STOP | Flag.SAVE
            ):  # one that the schedule does not have
                self._take(Round(Kind.CHECKPOINT, round.epoch, round.step + 1))
            if flags & (Flag.STOP | Flag.REFORM):
                return flags
        return Flag.NONE

    def _take(self, round: Round) -> Flag:
        try:
            return self._do(round)
        except RuntimeError as error:
            if self.student.replicas is not None and broke_off(error):
                raise self.exchange.diagnose(error) from error
            raise

    def _do(self, round: Round) -> Flag:
        self.exchange.monitor.heartbeat.enter("data", round.step)
        if round.kind is Kind.TRAIN:
            return self._train(round)
        if round.kind is Kind.CHECKPOINT:
            return self._checkpoint(round)
        if round.kind is Kind.END:
            self._begin(round)
            return self._round_trip(round).flags
        return self._predict(round)

    def _train(self, round: Round) -> Flag:
        """One training step: own view, logits to all, soft target back, own update."""
        student, enter = self.student, self.exchange.monitor.heartbeat.enter
        started, earlier_s = time.perf_counter(), self.ahead_s
        batch = self._batch()
        loaded = time.perf_counter()
        enter("forward")
        logits_BC = student.forward(batch.images, round.step, learns=student.learns(round.epoch))
        self._begin(round)
        self.exchange.outgoing.write_rows(
            batch.ids, student.contribution(logits_BC, round.step), batch.labels
        )
        computed = time.perf_counter()
        busy_s = self.exchange.outgoing.header["busy_s"] = earlier_s + computed - self.answered
        with_rows = sends_target(student.recipe)
        self._send()
        self.exchange.post_receive(with_rows)
        self._load_ahead(round)
        answer = self._receive(round, with_rows=with_rows)
        enter("backward")
        step_metrics = self._learn(round, logits_BC, batch, answer)
        ended = time.perf_counter()
        # Who waits for whom: the last to come has no wait, the others as long as they were faster.
        slowest_s = float(answer.header["busy_s"])
        idle_s = self.answered - computed - self.ahead_s
        wait_s = min(max(0.0, slowest_s - busy_s), idle_s)
        self.step_metrics = step_metrics._replace(
            data_s=loaded - started + self.ahead_s,
            forward_s=computed - loaded,
            wait_s=wait_s,
            exchange_s=idle_s - wait_s,
            backward_s=ended - self.answered,
            step_s=ended - started,
        )
        return answer.flags

    def _batch(self) -> Batch:
        """The next batch: loaded ahead, or now."""
        batch, self.ahead, self.ahead_s = self.ahead, None, 0.0
        return next(self.batches) if batch is None else batch

    def _load_ahead(self, round: Round) -> None:
        """Load the next step's batch while the others and the coordinator are waited for.

        Not beyond an epoch's end: what is wrong with the data of the next must not cost this one's results.
        """
        if (round.step + 1) % self.training_data.schedule.steps_per_epoch == 0:
            return
        began = time.perf_counter()
        self.exchange.monitor.heartbeat.enter("data", round.step + 1)
        self.ahead = next(self.batches)
        self.ahead_s = time.perf_counter() - began

    def _learn(self, round: Round, logits_BC: Tensor, batch: Batch, answer: Message) -> StepMetrics:
        """The own update, if the student learns in this epoch; what is to be told of it but the losses."""
        student = self.student
        if answer.excludes(self.worker.student):
            student.forget_step()
            return StepMetrics(step=round.step)
        self.losses = student.loss(logits_BC, batch.labels, *self._target(batch.ids, answer))
        self.skipped = torch.zeros_like(self.losses.total)
        if not student.learns(round.epoch):
            return StepMetrics(step=round.step)
        step_metrics = StepMetrics(
            step=round.step, lr=student.lr(round.step, self.training_data.schedule.steps_per_epoch)
        )
        if student.recipe.analysis.measures(round.step) and self.losses.distillation.requires_grad:
            found = student.conflict(self.losses)
            step_metrics = step_metrics._replace(gradient_cosine=found.cosine, gradient_ratio=found.ratio)
        self.skipped = student.learn(self.losses.total, step_metrics.lr)
        return step_metrics

    def _predict(self, round: Round) -> Flag:
        """One batch of a pass over held-out or test samples, in evaluation mode."""
        if round.part == 0:
            self.student.share_buffers()
        batch = self._batch()
        self.exchange.monitor.heartbeat.enter("evaluation")
        self._begin(round)
        self.exchange.outgoing.write_rows(batch.ids, self.student.predict(batch.images), batch.labels)
        return self._round_trip(round).flags

    def _checkpoint(self, round: Round) -> Flag:
        """Write the student's part, then tell the coordinator its hash; the manifest makes it count."""
        self.exchange.monitor.heartbeat.enter("checkpoint", round.step)
        self.student.share_buffers()
        self._begin(round)
        if self.worker.replica == 0:  # the others have the same state
            part = write_part(self.run_.folder, round.step, self.student.spec.name, self.student.state_dict())
            header = self.exchange.outgoing.header
            header["bytes"], header["digest"] = part.bytes, list(bytes.fromhex(part.sha256))
        return self._round_trip(round, self.run_.recipe.limits.startup_s).flags

    def _begin(self, round: Round) -> None:
        flags = Flag.STOP if self.stop() else Flag.NONE
        self.exchange.outgoing.reset(round.kind, round.step, round.part, flags)

    def _round_trip(self, round: Round, limit_s: float | None = None) -> Message:
        """Give the own message, get the coordinator's answer, where that has no rows."""
        self._send(limit_s)
        return self._receive(round, with_rows=False, limit_s=limit_s)

    def _send(self, limit_s: float | None = None) -> None:
        """Give the own message.

        It carries the figures of the training step before it, once. They are read when the logits have been,
        so that a GPU is not waited for twice.
        """
        self.exchange.monitor.heartbeat.enter("gather")
        if self.losses is not None:
            total, task, distillation, skipped = torch.stack([*self.losses, self.skipped]).tolist()
            self.exchange.outgoing.header["metrics"][:] = self.step_metrics._replace(
                loss=total, task_loss=task, distillation_loss=distillation, skipped=skipped
            )
            self.losses = None
        self.exchange.gather(limit_s)

    def _receive(self, round: Round, *, with_rows: bool, limit_s: float | None = None) -> Message:
        self.exchange.monitor.heartbeat.enter("broadcast", round.step)
        answer = self.exchange.broadcast(with_rows, limit_s)
        self.answered = time.perf_counter()
        return answer

    def _target(self, ids_B: Tensor, answer: Message) -> tuple[Tensor | None, Tensor | None]:
        """What this student learns from, in its own order of the samples, and which of them have it.

        See `Student.loss`.
        """
        recipe = self.student.recipe
        if recipe.distillation.method == "dml":
            return self._peers(ids_B, self.exchange.messages), None
        if not sends_target(recipe):
            return None, None
        ids_R, _, target_RC = answer.contribution()
        if not recipe.distillation.keeps_logits:
            return target_RC[rows_of(ids_B, ids_R)], None
        row_B, covered_B = find_rows(ids_B, ids_R)
        return answer.logits[row_B], covered_B

    def _peers(self, ids_B: Tensor, messages: Sequence[Message]) -> Tensor:
        """All peers' log-probabilities at T = 1, (P, B, C)."""
        recipe, answer = self.run_.recipe, self.exchange.answer
        workers = [each.student for each in recipe.workers if each.student in self.present]
        parts = by_student(messages, workers, len(recipe.students))
        peers = [peer for peer in self.present if peer != self.worker.student and not answer.excludes(peer)]
        rows = [parts[peer].logits[rows_of(ids_B, parts[peer].ids)] for peer in peers]
        empty = torch.empty(0, len(ids_B), self.student.classes)
        return F.log_softmax(torch.stack(rows).float(), dim=2) if rows else empty

"""What a student's process runs: its turns of the plan, one after another."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from kdcl_dist.config.rounds import Kind, Turn
from kdcl_dist.config.student import Member
from kdcl_dist.data.loader import Batch
from kdcl_dist.data.training_data import Session
from kdcl_dist.distillation.losses import Losses
from kdcl_dist.exchange.alignment import find_rows, rows_of
from kdcl_dist.exchange.group import Exchange
from kdcl_dist.exchange.layout import sends_target
from kdcl_dist.exchange.message import Flag, Message, Numbers, by_student
from kdcl_dist.exchange.replicas import broke_off
from kdcl_dist.membership.rendezvous import Call
from kdcl_dist.run.checkpoint import write_part
from kdcl_dist.run.run import Run
from kdcl_dist.student.student import Student

__all__ = ["StudentLoop"]


class StudentLoop:
    """One student's walk through the plan, in one generation of the exchange group.

    Attributes:
        position: the turn that it takes next.
        ahead: the next step's batch, if it is loaded already; ahead_s: seconds that this took.
    """

    def __init__(
        self,
        run: Run,
        member: Member,
        student: Student,
        session: Session,
        exchange: Exchange,
        call: Call,
        stop: Callable[[], bool],
    ) -> None:
        self.run_, self.member, self.student, self.session = run, member, student, session
        self.exchange, self.stop, self.present = exchange, stop, call.students
        self.position = call.at
        self.batches = session.run(member.student, call.at, member.replica)
        self.numbers = Numbers()
        self.losses: Losses | None = None
        self.skipped = torch.zeros(())
        self.answered = time.perf_counter()
        self.ahead: Batch | None = None
        self.ahead_s = 0.0

    def run(self) -> Flag:
        """Take every turn to the run's end, or to the first after which it stops or forms anew."""
        plan = self.session.plan
        for turn in plan.turns(self.position):
            flags = self._take(turn)
            self.position = plan.after(turn)
            if turn.kind is Kind.TRAIN and flags & (Flag.STOP | Flag.SAVE):  # one that the plan does not have
                self._take(Turn(Kind.CHECKPOINT, turn.epoch, turn.step + 1))
            if flags & (Flag.STOP | Flag.REFORM):
                return flags
        return Flag.NONE

    def _take(self, turn: Turn) -> Flag:
        try:
            return self._do(turn)
        except RuntimeError as error:
            if self.student.replicas is not None and broke_off(error):
                raise self.exchange.explain(error) from error
            raise

    def _do(self, turn: Turn) -> Flag:
        self.exchange.board.pulse.enter("data", turn.step)
        if turn.kind is Kind.TRAIN:
            return self._train(turn)
        if turn.kind is Kind.CHECKPOINT:
            return self._checkpoint(turn)
        if turn.kind is Kind.END:
            self._begin(turn)
            return self._trade(turn).flags
        return self._predict(turn)

    def _train(self, turn: Turn) -> Flag:
        """One training step: own view, logits to all, soft target back, own update."""
        student, enter = self.student, self.exchange.board.pulse.enter
        started, earlier_s = time.perf_counter(), self.ahead_s
        batch = self._batch()
        loaded = time.perf_counter()
        enter("forward")
        logits_BC = student.forward(batch.images, turn.step, learns=student.learns(turn.epoch))
        self._begin(turn)
        self.exchange.mine.put(batch.ids, student.contribution(logits_BC, turn.step), batch.labels)
        computed = time.perf_counter()
        busy_s = self.exchange.mine.header["busy_s"] = earlier_s + computed - self.answered
        with_rows = sends_target(student.recipe)
        self._send()
        self.exchange.expect(with_rows)
        self._load_ahead(turn)
        answer = self._receive(turn, with_rows=with_rows)
        enter("backward")
        numbers = self._learn(turn, logits_BC, batch, answer)
        ended = time.perf_counter()
        # Who waits for whom: the last to come has no wait, the others as long as they were faster.
        slowest_s = float(answer.header["busy_s"])
        idle_s = self.answered - computed - self.ahead_s
        wait_s = min(max(0.0, slowest_s - busy_s), idle_s)
        self.numbers = numbers._replace(
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

    def _load_ahead(self, turn: Turn) -> None:
        """Load the next step's batch while the others and the coordinator are waited for.

        Not beyond an epoch's end: what is wrong with the data of the next must not cost this one's results.
        """
        if (turn.step + 1) % self.session.plan.steps_per_epoch == 0:
            return
        began = time.perf_counter()
        self.exchange.board.pulse.enter("data", turn.step + 1)
        self.ahead = next(self.batches)
        self.ahead_s = time.perf_counter() - began

    def _learn(self, turn: Turn, logits_BC: Tensor, batch: Batch, answer: Message) -> Numbers:
        """The own update, if the student learns in this epoch; what is to be told of it but the losses."""
        student = self.student
        if answer.excludes(self.member.student):
            student.forget_step()
            return Numbers(step=turn.step)
        self.losses = student.loss(logits_BC, batch.labels, *self._target(batch.ids, answer))
        self.skipped = torch.zeros_like(self.losses.total)
        if not student.learns(turn.epoch):
            return Numbers(step=turn.step)
        numbers = Numbers(step=turn.step, lr=student.lr(turn.step, self.session.plan.steps_per_epoch))
        if student.recipe.analysis.measures(turn.step) and self.losses.distillation.requires_grad:
            found = student.conflict(self.losses)
            numbers = numbers._replace(gradient_cosine=found.cosine, gradient_ratio=found.ratio)
        self.skipped = student.learn(self.losses.total, numbers.lr)
        return numbers

    def _predict(self, turn: Turn) -> Flag:
        """One batch of a pass over held-out or test samples, in evaluation mode."""
        if turn.part == 0:
            self.student.share_buffers()
        batch = self._batch()
        self.exchange.board.pulse.enter("evaluation")
        self._begin(turn)
        self.exchange.mine.put(batch.ids, self.student.predict(batch.images), batch.labels)
        return self._trade(turn).flags

    def _checkpoint(self, turn: Turn) -> Flag:
        """Write the student's part, then tell the coordinator its hash; the manifest makes it count."""
        self.exchange.board.pulse.enter("checkpoint", turn.step)
        self.student.share_buffers()
        self._begin(turn)
        if self.member.replica == 0:  # the others have the same state
            part = write_part(self.run_.folder, turn.step, self.student.spec.name, self.student.state_dict())
            header = self.exchange.mine.header
            header["bytes"], header["digest"] = part.bytes, list(bytes.fromhex(part.sha256))
        return self._trade(turn, self.run_.recipe.limits.startup_s).flags

    def _begin(self, turn: Turn) -> None:
        flags = Flag.STOP if self.stop() else Flag.NONE
        self.exchange.mine.begin(turn.kind, turn.step, turn.part, flags)

    def _trade(self, turn: Turn, limit_s: float | None = None) -> Message:
        """Give the own message, get the coordinator's answer, where that has no rows."""
        self._send(limit_s)
        return self._receive(turn, with_rows=False, limit_s=limit_s)

    def _send(self, limit_s: float | None = None) -> None:
        """Give the own message.

        It carries the figures of the training step before it, once. They are read when the logits have been,
        so that a GPU is not waited for twice.
        """
        self.exchange.board.pulse.enter("gather")
        if self.losses is not None:
            total, task, distillation, skipped = torch.stack([*self.losses, self.skipped]).tolist()
            self.exchange.mine.header["numbers"][:] = self.numbers._replace(
                loss=total, task_loss=task, distillation_loss=distillation, skipped=skipped
            )
            self.losses = None
        self.exchange.gather(limit_s)

    def _receive(self, turn: Turn, *, with_rows: bool, limit_s: float | None = None) -> Message:
        self.exchange.board.pulse.enter("broadcast", turn.step)
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
        members = [each.student for each in recipe.members if each.student in self.present]
        parts = by_student(messages, members, len(recipe.students))
        peers = [peer for peer in self.present if peer != self.member.student and not answer.excludes(peer)]
        rows = [parts[peer].logits[rows_of(ids_B, parts[peer].ids)] for peer in peers]
        empty = torch.empty(0, len(ids_B), self.student.classes)
        return F.log_softmax(torch.stack(rows).float(), dim=2) if rows else empty

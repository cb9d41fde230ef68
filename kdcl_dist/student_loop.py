"""What a student's process runs: its turns of the plan, one after another."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from kdcl_dist.alignment import find_rows, rows_of
from kdcl_dist.board import Board
from kdcl_dist.checkpoint import read_part, write_part
from kdcl_dist.coordinator import answer_rows, sends_target
from kdcl_dist.data.loader import Batch
from kdcl_dist.errors import CoordinatorLost, KdclError, wrap
from kdcl_dist.exchange import Endpoint, Exchange, connect_store, scoped
from kdcl_dist.losses import Losses
from kdcl_dist.meeting import Call, Hello, Meeting
from kdcl_dist.message import Flag, Kind, Layout, Message, Numbers, by_student
from kdcl_dist.plan import Turn, share_of
from kdcl_dist.recipe import Member, Recipe
from kdcl_dist.replicas import Replicas, broke_off
from kdcl_dist.runs import Run, versions
from kdcl_dist.session import Session
from kdcl_dist.student import Student

__all__ = ["Find", "layout_of", "prepare_process", "run_student"]


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
        rank: place in `run.recipe.members`.
        find: tells where the coordinator's store is; given an endpoint, where the next one is after that
            was lost. Raises `CoordinatorLost` when there is none.
        host: this process's address, by which the others reach it.
        device: where the network trains.
        stop: asked at each step whether this process wants the run to stop.

    Returns:
        True at the end of the run, False when it was stopped before, after a checkpoint.

    Raises:
        RunOver: the coordinator ended the run, for a failure that it names.
        KdclError: this student's own failure, or one after which the coordinator does not go on.
    """
    prepare_process(run, threads=run.recipe.students[run.recipe.members[rank].student].resources.cpu)
    lost: Endpoint | None = None
    while True:
        endpoint = find(lost)
        try:
            return _Seat(run, rank, endpoint, host, device, stop).run()
        except CoordinatorLost:
            if not run.recipe.failure.allowed:
                raise
            lost = endpoint


class _Seat:
    """A student's place under one coordinator, through one generation of the exchange group after another."""

    def __init__(
        self,
        run: Run,
        rank: int,
        endpoint: Endpoint,
        host: str,
        device: torch.device,
        stop: Callable[[], bool],
    ) -> None:
        self.run_, self.host, self.device, self.stop = run, host, device, stop
        self.member, self.limits = run.recipe.members[rank], run.recipe.limits
        self.spec = run.recipe.students[self.member.student]
        self.store = scoped(connect_store(endpoint, self.limits.startup_s), run.id)
        names = [each.name for each in run.recipe.members]
        self.board = Board(self.store, names, rank, generation=-1)  # of none until it is called
        self.meeting = Meeting(self.board)
        self.session: Session | None = None

    def run(self) -> bool:
        """Take part until the run's end; errors as `run_student`."""
        try:
            self.board.start_pulse(self.host, slow_s=self.limits.step_s / 2)
            while True:
                student, session = self._prepare()
                call = self.meeting.join(self._hello(student, session), 2 * self.limits.startup_s)
                try:
                    return self._generation(call, student, session)
                except KdclError as error:
                    if not self._survives(error):
                        raise
        finally:
            self.board.say_bye()
            self.board.close()

    def _survives(self, error: KdclError) -> bool:
        """Whether what broke the generation is another student's failure, so that this process stays."""
        own = error is not self.board.cause or error.student == self.member.name
        return not own and not isinstance(error, CoordinatorLost)

    def _prepare(self) -> tuple[Student, Session]:
        """The student as it is before its first step, and the data, which stay open."""
        self.board.pulse.enter("start")
        try:
            session = self.session or Session.open(self.run_.recipe)
            student = _build(self.run_, self.member, self.device, session)
            if self.session is None:
                _try_out(student, session, self.member)
            self.session = session
        except Exception as error:
            cause = wrap(error, student=self.member.name, step=None, phase="start")
            self.meeting.report(cause)
            raise cause from error
        return student, session

    def _hello(self, student: Student, session: Session) -> Hello:
        cuda = student.device.type == "cuda"
        return Hello(
            name=self.member.name,
            host=self.host,
            pid=os.getpid(),
            device=torch.cuda.get_device_name(student.device) if cuda else "cpu",
            parameters=student.parameters,
            classes=student.classes,
            plan=asdict(session.plan),
            data=session.fingerprints,
            versions=versions(),
        )

    def _generation(self, call: Call, student: Student, session: Session) -> bool:
        """Train from the checkpoint of the call until the end of the run, or the first failure."""
        board, run = self.board, replace(self.run_, start=call.start, generation=call.number)
        board.enter(call.number)
        exchange: Exchange | None = None
        replicas: Replicas | None = None
        try:
            if call.start is not None:
                student.load_state_dict(read_part(run.folder, call.start, self.spec.name))
            if self.spec.replicas > 1:
                replicas = self._join_replicas(call.number)
                student.join(replicas)
            exchange = Exchange(
                board,
                scoped(self.store, str(call.number)),
                host=self.host,
                layout=layout_of(run.recipe, student.classes),
                answer_rows=answer_rows(run.recipe),
                run=run.number,
                generation=call.number,
                step_s=self.limits.step_s,
            )
            return StudentLoop(run, self.member, student, session, exchange, self.stop).run()
        except Exception as error:
            if error is board.cause:
                raise
            pulse, name = board.pulse, self.member.name
            raise board.report(wrap(error, student=name, step=pulse.step, phase=pulse.phase)) from error
        finally:
            if replicas is not None:
                replicas.close()
            if exchange is not None:
                exchange.close()

    def _join_replicas(self, generation: int) -> Replicas:
        return Replicas(
            scoped(self.store, f"{generation}/replicas/{self.spec.name}"),
            self.member.replica,
            self.spec.replicas,
            host=self.host,
            device=self.device,
            limit_s=max(self.limits.startup_s, self.limits.step_s),
        )


def layout_of(recipe: Recipe, classes: int) -> Layout:
    """The size of every member's message: what the student with the fewest replicas needs."""
    return Layout(max(share_of(recipe.batch_size, 0, each.replicas) for each in recipe.students), classes)


def prepare_process(run: Run, threads: int) -> None:
    """Set this process's threads, determinism, and the folders in which import strings are looked up."""
    torch.set_num_threads(threads)
    if run.recipe.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = not run.recipe.deterministic
    if Path(run.root).is_dir():
        os.chdir(run.root)
    if run.root not in sys.path:
        sys.path.insert(0, run.root)


def _build(run: Run, member: Member, device: torch.device, session: Session) -> Student:
    return Student(
        run.recipe,
        member.student,
        replica=member.replica,
        classes=len(session.train.classes),
        channels=session.train.channels,
        device=device,
        resumed=run.start is not None,
    )


def _try_out(student: Student, session: Session, member: Member) -> None:
    """Find what is wrong with a network or its data before the cast comes together."""
    student.check_output(next(session.testing()).images[:2])
    first = session.first_views(member.student, 2)
    student.try_step(first.images, first.labels)


class StudentLoop:
    """One student's walk through the plan."""

    def __init__(
        self,
        run: Run,
        member: Member,
        student: Student,
        session: Session,
        exchange: Exchange,
        stop: Callable[[], bool],
    ) -> None:
        self.run_, self.member, self.student, self.session = run, member, student, session
        self.exchange, self.stop = exchange, stop
        self.training = session.training(member.student, run.step, member.replica)
        self.passing: Iterator[Batch] = iter(())
        self.numbers = Numbers()
        self.losses: Losses | None = None
        self.answered = time.perf_counter()

    def run(self) -> bool:
        """Take every turn; whether the end of the run was reached."""
        for turn in self.session.plan.turns(self.run_.step):
            if Flag.STOP in self._take(turn):
                if turn.kind is Kind.TRAIN:
                    self._checkpoint(Turn(Kind.CHECKPOINT, turn.epoch, turn.step + 1))
                return False
        return True

    def _take(self, turn: Turn) -> Flag:
        self.exchange.board.pulse.enter("data", turn.step)
        if turn.kind is Kind.TRAIN:
            return self._train(turn)
        if turn.kind is Kind.CHECKPOINT:
            return self._checkpoint(turn)
        if turn.kind is Kind.END:
            self._begin(turn)
            return self._trade(with_rows=False).flags
        return self._predict(turn)

    def _train(self, turn: Turn) -> Flag:
        """One training step: own view, logits to all, soft target back, own update."""
        student, enter = self.student, self.exchange.board.pulse.enter
        started = time.perf_counter()
        batch = next(self.training)
        loaded = time.perf_counter()
        enter("forward")
        logits_BC = student.forward(batch.images, turn.step, learns=student.learns(turn.epoch))
        self._begin(turn)
        self.exchange.mine.put(batch.ids, student.contribution(logits_BC, turn.step), batch.labels)
        computed = time.perf_counter()
        busy_s = self.exchange.mine.header["busy_s"] = computed - self.answered
        answer = self._trade(with_rows=sends_target(student.recipe))
        enter("backward")
        try:
            numbers = self._learn(turn, logits_BC, batch, answer)
        except RuntimeError as error:
            if student.replicas is not None and broke_off(error):
                raise self.exchange.explain(error) from error
            raise
        ended = time.perf_counter()
        # Who waits for whom: the last to come has no wait, the others as long as they were faster.
        slowest_s = max(float(message.header["busy_s"]) for message in self.exchange.messages)
        wait_s = min(max(0.0, slowest_s - busy_s), self.answered - computed)
        self.numbers = numbers._replace(
            data_s=loaded - started,
            forward_s=computed - loaded,
            wait_s=wait_s,
            exchange_s=self.answered - computed - wait_s,
            backward_s=ended - self.answered,
            step_s=ended - started,
        )
        return answer.flags

    def _learn(self, turn: Turn, logits_BC: Tensor, batch: Batch, answer: Message) -> Numbers:
        """The own update, if the student learns in this epoch; what is to be told of it but the losses."""
        student = self.student
        self.losses = student.loss(logits_BC, batch.labels, *self._target(batch.ids, answer))
        if not student.learns(turn.epoch):
            return Numbers(step=turn.step)
        numbers = Numbers(step=turn.step, lr=student.lr(turn.step, self.session.plan.steps_per_epoch))
        if student.recipe.analysis.measures(turn.step) and self.losses.distillation.requires_grad:
            found = student.conflict(self.losses)
            numbers = numbers._replace(gradient_cosine=found.cosine, gradient_ratio=found.ratio)
        student.learn(self.losses.total, numbers.lr)
        return numbers

    def _predict(self, turn: Turn) -> Flag:
        """One batch of a pass over held-out or test samples, in evaluation mode."""
        if turn.part == 0:
            self.student.share_buffers()
            share = self.member.replica, self.student.spec.replicas
            session = self.session
            self.passing = session.holdout(*share) if turn.kind is Kind.HOLDOUT else session.testing(*share)
        batch = next(self.passing)
        self.exchange.board.pulse.enter("evaluation")
        self._begin(turn)
        self.exchange.mine.put(batch.ids, self.student.predict(batch.images), batch.labels)
        flags = self._trade(with_rows=False).flags
        plan = self.session.plan
        if turn.part + 1 == (plan.holdout_batches if turn.kind is Kind.HOLDOUT else plan.test_batches):
            self.passing = iter(())  # lets the loader's processes go until the next pass
        return flags

    def _checkpoint(self, turn: Turn) -> Flag:
        """Write the student's part, then tell the coordinator its hash; the manifest makes it count."""
        self.exchange.board.pulse.enter("checkpoint", turn.step)
        self.student.share_buffers()
        self._begin(turn)
        if self.member.replica == 0:  # the others have the same state
            part = write_part(self.run_.folder, turn.step, self.student.spec.name, self.student.state_dict())
            header = self.exchange.mine.header
            header["bytes"], header["digest"] = part.bytes, list(bytes.fromhex(part.sha256))
        return self._trade(with_rows=False, limit_s=self.run_.recipe.limits.startup_s).flags

    def _begin(self, turn: Turn) -> None:
        """Start a message; it carries the figures of the training step before it, once."""
        flags = Flag.STOP if self.stop() else Flag.NONE
        self.exchange.mine.begin(turn.kind, turn.step, turn.part, flags)
        if self.losses is not None:
            total, task, distillation = torch.stack(self.losses).tolist()
            self.exchange.mine.header["numbers"][:] = self.numbers._replace(
                loss=total, task_loss=task, distillation_loss=distillation
            )
            self.losses = None

    def _trade(self, *, with_rows: bool, limit_s: float | None = None) -> Message:
        """Give the own message, get the coordinator's answer."""
        self.exchange.board.pulse.enter("gather")
        self.exchange.gather(limit_s)
        self.exchange.board.pulse.enter("broadcast")
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
        parts = by_student(messages, [member.student for member in self.run_.recipe.members])
        del parts[self.member.student]
        rows = [part.logits[rows_of(ids_B, part.ids)] for part in parts]
        empty = torch.empty(0, len(ids_B), self.student.classes)
        return F.log_softmax(torch.stack(rows), dim=2) if rows else empty

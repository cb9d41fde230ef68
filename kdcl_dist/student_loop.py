"""What a student's process runs: its turns of the plan, one after another."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from kdcl_dist.alignment import rows_of
from kdcl_dist.board import Board, Hello
from kdcl_dist.checkpoint import read_part, write_part
from kdcl_dist.coordinator import sends_target
from kdcl_dist.data.loader import Batch
from kdcl_dist.errors import wrap
from kdcl_dist.exchange import Endpoint, Exchange, connect_store, scoped
from kdcl_dist.losses import Losses
from kdcl_dist.message import Flag, Kind, Layout, Message, Numbers, by_student
from kdcl_dist.plan import Turn, share_of
from kdcl_dist.recipe import Member, Recipe
from kdcl_dist.replicas import Replicas, broke_off
from kdcl_dist.runs import Run, versions
from kdcl_dist.session import Session
from kdcl_dist.student import Student

__all__ = ["layout_of", "prepare_process", "run_student"]


def run_student(
    run: Run,
    rank: int,
    endpoint: Endpoint,
    *,
    host: str,
    device: torch.device,
    stop: Callable[[], bool],
) -> bool:
    """Train one student of a run, or one of its replicas, to the run's end.

    Args:
        run: the run.
        rank: place in `run.recipe.members`.
        endpoint: the coordinator's store.
        host: this process's address, by which the others reach it.
        device: where the network trains.
        stop: asked at each step whether this process wants the run to stop.

    Returns:
        True at the end of the run, False when it was stopped before, after a checkpoint.

    Raises:
        KdclError: the first failure of the run, this student's own or another's.
    """
    recipe, limits = run.recipe, run.recipe.limits
    store = scoped(connect_store(endpoint, limits.startup_s), run.id, run.generation)
    members = recipe.members
    member, spec = members[rank], recipe.students[members[rank].student]
    board = Board(store, [each.name for each in members], rank)
    board.start_pulse(host)
    exchange: Exchange | None = None
    replicas: Replicas | None = None
    try:
        prepare_process(run, threads=spec.resources.cpu)
        student, session = _build(run, member, device)
        board.say_hello(_hello(run, member, student, session, host))
        board.await_welcome(limits.startup_s)
        if spec.replicas > 1:
            replicas = Replicas(
                scoped(store, f"replicas/{spec.name}", 0),
                member.replica,
                spec.replicas,
                host=host,
                device=device,
                limit_s=max(limits.startup_s, limits.step_s),
            )
            student.join(replicas)
        exchange = Exchange(
            board,
            store,
            host=host,
            layout=layout_of(recipe, student.classes),
            answer_rows=recipe.batch_size,
            run=run.number,
            generation=run.generation,
            startup_s=limits.startup_s,
            step_s=limits.step_s,
        )
        return StudentLoop(run, member, student, session, exchange, stop).run()
    except Exception as error:
        pulse, name = board.pulse, member.name
        raise board.report(wrap(error, student=name, step=pulse.step, phase=pulse.phase)) from error
    finally:
        if replicas is not None:
            replicas.close()
        if exchange is not None:
            exchange.close()
        board.say_bye()
        board.close()


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


def _build(run: Run, member: Member, device: torch.device) -> tuple[Student, Session]:
    session = Session.open(run.recipe)
    classes, channels = len(session.train.classes), session.train.channels
    student = Student(
        run.recipe,
        member.student,
        replica=member.replica,
        classes=classes,
        channels=channels,
        device=device,
        resumed=run.start is not None,
    )
    student.check_output(next(session.testing()).images[:2])
    first = session.first_views(member.student, 2)
    student.try_step(first.images, first.labels)
    if run.start is not None:
        student.load_state_dict(read_part(run.folder, run.start, student.spec.name))
    return student, session


def _hello(run: Run, member: Member, student: Student, session: Session, host: str) -> Hello:
    return Hello(
        name=member.name,
        host=host,
        pid=os.getpid(),
        device=torch.cuda.get_device_name(student.device) if student.device.type == "cuda" else "cpu",
        parameters=student.parameters,
        classes=student.classes,
        plan=asdict(session.plan),
        data=session.fingerprints,
        versions=versions(),
    )


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
        self.losses = student.loss(logits_BC, batch.labels, self._target(batch.ids, answer))
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

    def _target(self, ids_B: Tensor, answer: Message) -> Tensor | None:
        """What this student learns from, in its own order of the samples; see `Student.loss`."""
        if self.student.recipe.distillation.method == "dml":
            return self._peers(ids_B, self.exchange.messages)
        if not sends_target(self.student.recipe):
            return None
        ids_R, _, target_RC = answer.contribution()
        return target_RC[rows_of(ids_B, ids_R)]

    def _peers(self, ids_B: Tensor, messages: Sequence[Message]) -> Tensor:
        """All peers' log-probabilities at T = 1, (P, B, C)."""
        parts = by_student(messages, [member.student for member in self.run_.recipe.members])
        del parts[self.member.student]
        rows = [part.logits[rows_of(ids_B, part.ids)] for part in parts]
        empty = torch.empty(0, len(ids_B), self.student.classes)
        return F.log_softmax(torch.stack(rows), dim=2) if rows else empty

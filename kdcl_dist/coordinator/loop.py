"""What the coordinator's process runs: the same plan as the students, from the other side."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from kdcl_dist.config.rounds import Kind, Plan, Turn
from kdcl_dist.coordinator.aggregator import Answer, Coordinator
from kdcl_dist.coordinator.logit_bank import PREFIX, make_bank
from kdcl_dist.coordinator.metrics_collector import Record
from kdcl_dist.coordinator.validation import check_messages
from kdcl_dist.coordinator.window_check import walks_of
from kdcl_dist.errors import KdclError, StorageError
from kdcl_dist.exchange.group import Exchange
from kdcl_dist.exchange.layout import sends_target
from kdcl_dist.exchange.message import Flag, Message
from kdcl_dist.membership.monitor import COORDINATOR
from kdcl_dist.run.checkpoint import Manifest, Part, carry_part, commit, prune, read_part, write_part
from kdcl_dist.run.events import CheckpointSaved, Event, Note, Stepped
from kdcl_dist.run.run import Run, check_owner, update_record

__all__ = ["CoordinatorLoop", "Held"]

#: Seconds between two `Stepped` events.
TELL_S = 0.2
#: Seconds between two looks for students that return.
LOOK_S = 0.5
#: Seconds for which a write that can wait is tried while the students do.
HASTE_S = 3.0


class _Step(NamedTuple):
    """A training step that was answered."""

    answer: Answer
    ensemble_s: float


@dataclass
class Held:
    """What the coordinator keeps from turn to turn, and from one generation to the next that goes on.

    Attributes:
        position: the turn that it takes next.
        saved: the newest checkpoint.
    """

    coordinator: Coordinator
    record: Record
    position: Turn
    saved: Manifest | None

    @classmethod
    def of(cls, run: Run, plan: Plan, classes: int) -> Held:
        """As a run's start has it."""
        bank = make_bank(run.recipe, plan.samples, classes)
        coordinator = Coordinator(run.recipe, bank, walks_of(run.recipe, plan))
        held = cls(coordinator, Record(run, plan), plan.first(run.step), run.start)
        if run.start is not None:
            state = read_part(run.folder, run.start, COORDINATOR)
            coordinator.load_state_dict(state["coordinator"])
            held.record.load_state_dict(state)
            if bank is not None:
                for name in (name for name in run.start.parts if name.startswith(PREFIX)):
                    bank.load(read_part(run.folder, run.start, name))
        return held

    def close(self) -> None:
        """Close its files."""
        self.record.close()
        if self.coordinator.bank is not None:
            self.coordinator.bank.close()


class CoordinatorLoop:
    """The coordinator's walk through the plan, in one generation of the exchange group.

    Args:
        run, plan: the run, and its plan.
        held: what it knows; kept up to date.
        present: places of the students that take part.
        exchange: with them.
        stop: asked at each step whether the run shall stop, with a checkpoint.
        returns: asked now and then whether a student that is absent is ready to join again.
        notice: asked now and then for a reason to take a checkpoint before the next of the plan.
        tell: hears what happens.
    """

    def __init__(
        self,
        run: Run,
        plan: Plan,
        held: Held,
        present: Sequence[int],
        exchange: Exchange,
        *,
        stop: Callable[[], bool],
        returns: Callable[[], bool],
        notice: Callable[[], str | None],
        tell: Callable[[Event], None],
    ) -> None:
        self.run_, self.recipe, self.plan, self.held = run, run.recipe, plan, held
        self.exchange, self.stop, self.tell = exchange, stop, tell
        self.returns, self.notice = returns, notice
        self.members = [member for member in run.recipe.members if member.student in present]
        self.present = held.coordinator.present = list(present)
        self.coordinator, self.record = held.coordinator, held.record
        self.hasty = run.folder.within(HASTE_S)
        self.step: _Step | None = None
        self.stopping = False
        self.skipped: set[int] = set()
        self.told = self.looked = 0.0

    def run(self) -> Flag:
        """Take every turn to the run's end, or to the first after which it stops or forms anew."""
        for turn in self.plan.turns(self.held.position):
            after = self.plan.after(turn)
            flags = self._take(turn, after)
            self.held.position = after
            if turn.kind is Kind.TRAIN and flags & (Flag.STOP | Flag.SAVE):  # one that the plan does not have
                self._take(Turn(Kind.CHECKPOINT, turn.epoch, turn.step + 1), after)
            if Flag.STOP in flags:
                self._tell_trouble(self.record.flush(HASTE_S))
                self._tell_trouble(_try(lambda: update_record(self.hasty, state="interrupted")))
            if flags & (Flag.STOP | Flag.REFORM):
                return flags
        return Flag.NONE

    def _take(self, turn: Turn, after: Turn) -> Flag:
        """One turn: gather, check, answer; then note the step, while the students learn from it.

        Args:
            turn: what is to be done.
            after: the turn of the plan that follows.
        """
        exchange, pulse = self.exchange, self.exchange.board.pulse
        pulse.enter("gather", turn.step)
        exchange.mine.begin(turn.kind, turn.step, turn.part)
        limits = self.recipe.limits
        messages = exchange.gather(limits.startup_s if turn.kind is Kind.CHECKPOINT else None)
        exchange.answer.begin(turn.kind, turn.step, turn.part)  # the one before has left by now
        exchange.answer.header["busy_s"] = max(float(message.header["busy_s"]) for message in messages)
        pulse.enter("ensemble")
        with_rows = turn.kind is Kind.TRAIN and sends_target(self.recipe)
        try:
            self._answer(turn, messages)
        except KdclError as error:
            exchange.board.report(error.at(step=turn.step, phase="ensemble"))
            exchange.answer.header["flags"] = Flag.REFUSED
            exchange.broadcast(with_rows)
            raise
        if turn.kind is not Kind.TRAIN:  # is done, whether or not all hear of it
            self.held.position = after
        if self._may_stop(turn) and (self.stop() or any(Flag.STOP in m.flags for m in messages)):
            exchange.answer.header["flags"] = Flag.STOP
        elif turn.kind is Kind.TRAIN:
            exchange.answer.header["flags"] = self._interruption(turn)
        pulse.enter("broadcast")
        flags = self._give(turn, with_rows)
        pulse.enter("record")
        self._note_step(turn)
        return flags

    def _give(self, turn: Turn, with_rows: bool) -> Flag:
        """Give all the answer; its flags.

        After the last one each student leaves by itself, and all is saved: who does not get it hears from the
        board that the run has ended, and nobody is waited for.
        """
        exchange, flags = self.exchange, self.exchange.answer.flags
        self.stopping |= Flag.STOP in flags
        if turn.kind is Kind.END or (turn.kind is Kind.CHECKPOINT and self.stopping):
            with contextlib.suppress(KdclError):
                exchange.broadcast(with_rows)
                exchange.flush()
            return flags
        return exchange.broadcast(with_rows).flags

    def _answer(self, turn: Turn, messages: Sequence[Message]) -> None:
        check_messages(messages, self.members, turn, run=self.run_.number, generation=self.run_.generation)
        self._hear(messages)
        if turn.kind is Kind.TRAIN:
            self._train(turn, messages)
        elif turn.kind is Kind.HOLDOUT:
            self._holdout(turn, messages)
        elif turn.kind is Kind.EVALUATE:
            self._evaluate(turn, messages)
        elif turn.kind is Kind.CHECKPOINT:
            self.exchange.board.pulse.enter("checkpoint")
            self._checkpoint(turn, messages)
        else:
            self._finish()

    def _hear(self, messages: Sequence[Message]) -> None:
        """Take the figures of each student's last training step."""
        numbers = [message.numbers for message in messages]
        for line in self.record.numbers(self.members, numbers):
            self.tell(Note(f"warning: {line}"))
        skipped = {
            m.student: int(own.step) for m, own in zip(self.members, numbers, strict=True) if own.skipped
        }
        self.skipped |= set(skipped)
        for index, step in skipped.items():
            if index not in self.coordinator.bad_steps:
                where = f"the gradient of {self.recipe.names[index]} at step {step}"
                self.tell(Note(f"warning: {where} is NaN or infinite: it skips this step"))

    def _interruption(self, turn: Turn) -> Flag:
        """Whether the cast forms anew, or takes a checkpoint before the next of the plan."""
        if time.monotonic() - self.looked < LOOK_S:
            return Flag.NONE
        self.looked = time.monotonic()
        if len(self.present) < len(self.recipe.students) and self.returns():
            return Flag.REFORM
        if self._may_stop(turn) and (notice := self.notice()) is not None:
            self.tell(Note(f"{notice}: all take a checkpoint"))
            return Flag.SAVE
        return Flag.NONE

    def _may_stop(self, turn: Turn) -> bool:
        """Where the run can be taken up again: between steps of an epoch, and after a checkpoint."""
        if turn.kind is Kind.TRAIN:
            return (turn.step + 1) % self.plan.steps_per_epoch != 0
        return turn.kind is Kind.CHECKPOINT and turn.epoch + 1 < self.plan.epochs

    def _train(self, turn: Turn, messages: Sequence[Message]) -> None:
        started = time.perf_counter()
        answer = self.coordinator.answer(self.coordinator.parts(messages), turn.step)
        self._exclude(answer.bad, turn)
        if answer.target is not None:
            own = self.exchange.answer
            # In half precision a tiny probability's logarithm would be infinite.
            lowest = torch.finfo(own.layout.dtype).min
            own.put(answer.target.ids, answer.target.log_probabilities.clamp(min=lowest))
        self.step = _Step(answer, time.perf_counter() - started)

    def _exclude(self, bad: Sequence[int], turn: Turn) -> None:
        """Go on without the students whose logits of this step are not finite, but not for long."""
        news = [self.recipe.names[index] for index in bad if index not in self.coordinator.bad_steps]
        self.coordinator.check_bad(sorted({*bad, *self.skipped}), self.recipe.failure.max_bad_steps)
        self.skipped.clear()
        if bad:
            self.exchange.answer.exclude(bad)
        if news:
            self.tell(
                Note(
                    f"warning: logits of {', '.join(news)} at step {turn.step} are NaN or infinite: the "
                    "others learn without them, and they skip this step"
                )
            )

    def _note_step(self, turn: Turn) -> None:
        if self.step is None:
            return
        self.record.step(turn, *self.step)
        if self.recipe.analysis.measures(turn.step):
            self.record.analysis(turn, self.step.answer, self.coordinator.weights_S)
        self.step = None
        if time.monotonic() - self.told > TELL_S:
            self.told = time.monotonic()
            self.tell(Stepped(turn.step + 1, self.record.running()))

    def _holdout(self, turn: Turn, messages: Sequence[Message]) -> None:
        if turn.part == 0:
            self.coordinator.begin_holdout()
        self.coordinator.add_holdout(self.coordinator.align(messages))
        if turn.part + 1 == self.plan.holdout_batches:
            self.coordinator.update_weights()
            self.record.weights(turn, self.coordinator.weights_S)

    def _evaluate(self, turn: Turn, messages: Sequence[Message]) -> None:
        aligned = self.coordinator.align(messages)
        self.record.test(turn, self.present, aligned, self.coordinator.predict(aligned))
        if turn.part + 1 == self.plan.test_batches:
            self.exchange.board.pulse.enter("record")
            check_owner(self.run_)
            self.tell(self.record.end_epoch(turn))
            self._tell_trouble(self.record.flush(HASTE_S))

    def _checkpoint(self, turn: Turn, messages: Sequence[Message]) -> None:
        check_owner(self.run_)
        folder = self.run_.folder
        state = {"coordinator": self.coordinator.state_dict()} | self.record.state_dict()
        own = write_part(folder, turn.step, COORDINATOR, state)
        parts = {
            self.recipe.names[member.student]: Part(
                bytes(message.header["digest"]).hex(), int(message.header["bytes"])
            )
            for member, message in zip(self.members, messages, strict=True)
            if member.replica == 0
        }
        if (earlier := self.held.saved) is not None:
            absent = [name for name in self.recipe.names if name not in parts and name in earlier.parts]
            parts |= {name: carry_part(folder, earlier, turn.step, name) for name in absent}
        if (bank := self.coordinator.bank) is not None:
            parts |= {name: write_part(folder, turn.step, name, part) for name, part in bank.parts(turn.step)}
        manifest = Manifest(turn.step, parts | {COORDINATOR: own})
        commit(folder, manifest)
        self.held.saved = manifest
        self.tell(CheckpointSaved(turn.step))
        self._tell_trouble(_try(lambda: prune(self.hasty, self.recipe.checkpoint.keep)))

    def _finish(self) -> None:
        """Note the end. The last checkpoint has all: who cannot write here can resume and write then."""
        self.exchange.board.pulse.enter("record")
        try:
            if (error := self.record.flush(self.recipe.limits.patience_s)) is not None:
                raise error
            update_record(self.run_.folder, state="finished", results=self.record.results)
        except StorageError as error:
            error.message += "; the training is complete and saved: --resume writes what is missing"
            raise

    def _tell_trouble(self, error: StorageError | None) -> None:
        """What the storage did not take but the training can do without for now."""
        if error is not None:
            self.tell(Note(f"warning: {error.message}; training goes on, this is tried again"))


def _try(operation: Callable[[], None]) -> StorageError | None:
    try:
        operation()
    except StorageError as error:
        return error
    return None

"""What the coordinator's process runs: the same plan as the students, from the other side."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import NamedTuple

from kdcl_dist.bank import PREFIX
from kdcl_dist.board import COORDINATOR, Board, Store
from kdcl_dist.checkpoint import Manifest, Part, commit, newest, prune, read_part, write_part
from kdcl_dist.coordinator import Answer, Coordinator, answer_rows, check_messages, sends_target
from kdcl_dist.errors import (
    CoordinatorLost,
    DataError,
    KdclError,
    RunFolderError,
    StorageError,
    wrap,
)
from kdcl_dist.events import CheckpointSaved, Event, Note, Started, Stepped
from kdcl_dist.exchange import Exchange, scoped
from kdcl_dist.meeting import Call, Hello, Meeting
from kdcl_dist.message import Flag, Kind, Message, by_student
from kdcl_dist.plan import Plan, Turn
from kdcl_dist.record import Record
from kdcl_dist.recovery import gives_up
from kdcl_dist.room import make_bank
from kdcl_dist.runs import (
    Run,
    check_owner,
    next_generation,
    past_failures,
    read_record,
    record_failure,
    record_survival,
    update_record,
)
from kdcl_dist.student_loop import layout_of, prepare_process
from kdcl_dist.walks import walks_of

__all__ = ["run_coordinator"]

#: Seconds between two `Stepped` events.
TELL_S = 0.2
#: Seconds for which the store stays open after a failure, so that all can read its cause.
LINGER_S = 10.0
#: Seconds for which a write that can wait is tried while the students do.
HASTE_S = 3.0


def run_coordinator(
    run: Run,
    store: Store,
    *,
    host: str,
    stop: Callable[[], bool],
    tell: Callable[[Event], None],
    evict: Callable[[str, int], None] = lambda name, pid: None,
) -> bool:
    """Coordinate a run to its end, over all generations of its exchange group.

    Args:
        run: the run.
        store: the store that this process hosts.
        host: this process's address.
        stop: asked at each step whether the run shall stop, with a checkpoint.
        tell: hears what happens.
        evict: ends a member's process, given by name and id, that does not answer, so that it is replaced.

    Returns:
        True at the end of the run, False when it was stopped before, after a checkpoint.

    Raises:
        KdclError: the failure that ended the run.
    """
    board = Board(
        scoped(store, run.id), [member.name for member in run.recipe.members], len(run.recipe.members)
    )
    board.start_pulse(host)
    try:
        prepare_process(run, threads=1)
        return _Chair(run, board, host, stop, tell, evict).run()
    finally:
        board.await_byes(LINGER_S)
        board.close()


class _Chair:
    """Calls the cast together, and again after each failure that the run survives."""

    def __init__(
        self,
        run: Run,
        board: Board,
        host: str,
        stop: Callable[[], bool],
        tell: Callable[[Event], None],
        evict: Callable[[str, int], None],
    ) -> None:
        self.run_, self.board, self.host, self.stop, self.tell, self.evict = (
            run,
            board,
            host,
            stop,
            tell,
            evict,
        )
        self.meeting = Meeting(board)
        self.past = past_failures(run)

    def run(self) -> bool:
        """Coordinate; see `run_coordinator`."""
        try:
            if (number := next_generation(self.run_)) > 0:  # another coordinator was here, and died
                self._recover(CoordinatorLost("the coordinator died", phase="start"))
            while True:
                start = self._newest() if number else self.run_.start
                try:
                    return self._generation(Call(number, start))
                except Exception as error:
                    self._recover(wrap(error, student=None, step=None, phase=self.board.pulse.phase))
                number += 1
        except Exception as error:
            cause = wrap(error, student=None, step=None, phase="recovery")
            record_failure(self.run_, cause)
            self.meeting.end(cause)
            raise cause from error

    def _generation(self, call: Call) -> bool:
        """Coordinate from the checkpoint of the call until the end of the run, or the first failure."""
        run, board, limits = (
            replace(self.run_, start=call.start, generation=call.number),
            self.board,
            self.run_.recipe.limits,
        )
        board.enter(call.number)
        board.pulse.enter("start", run.step)
        hellos = self.meeting.assemble(limits.startup_s)
        check_agreement(hellos)
        check_same_data(run, hellos[0])
        self.meeting.call(call)
        exchange: Exchange | None = None
        try:
            exchange = Exchange(
                board,
                scoped(board.store, str(call.number)),
                host=self.host,
                layout=layout_of(run.recipe, hellos[0].classes),
                answer_rows=answer_rows(run.recipe),
                run=run.number,
                generation=call.number,
                step_s=limits.step_s,
            )
            return CoordinatorLoop(run, hellos, exchange, self.stop, self.tell).run()
        except Exception as error:
            if error is board.cause:
                raise
            pulse = board.pulse
            raise board.report(wrap(error, student=None, step=pulse.step, phase=pulse.phase)) from error
        finally:
            if exchange is not None:
                exchange.close()

    def _recover(self, cause: KdclError) -> None:
        """Make room for the next generation; raises the cause where the run ends with it."""
        failure = self.run_.recipe.failure
        if gives_up(failure, self.past, cause):
            raise cause
        self.past.append(cause)
        for name, pid in self.board.lost:
            self.evict(name, pid)
        count = f"failure {len(self.past)} of at most {failure.max_failures}"
        self.tell(Note(f"{cause}; all go back to the newest checkpoint ({count}, failure.max_failures)"))
        _try(lambda: record_survival(self.run_, self.past))

    def _newest(self) -> Manifest | None:
        return newest(self.run_.folder, lambda text: self.tell(Note(f"warning: {text}")))


def check_agreement(hellos: Sequence[Hello]) -> None:
    """See that all students mean the same run.

    Raises:
        DataError: they read different data. KdclError: they run different versions.
    """
    first = hellos[0]
    for hello in hellos[1:]:
        for name in sorted(first.versions):
            if hello.versions.get(name) != first.versions[name]:
                raise KdclError(
                    f"runs {name} {hello.versions.get(name)}, but {first.name!r} on {first.host} runs "
                    f"{first.versions[name]}: install the same versions on every host",
                    student=hello.name,
                    host=hello.host,
                )
        if (hello.data, hello.plan, hello.classes) != (first.data, first.plan, first.classes):
            raise DataError(
                f"reads other data than {first.name!r} on {first.host}: the fingerprints or sizes differ "
                "(`kdcl data inspect` shows them)",
                student=hello.name,
                host=hello.host,
            )


def check_same_data(run: Run, hello: Hello) -> None:
    """See that a resumed run reads the data it began with; raises `RunFolderError`."""
    before = read_record(run.folder).get("data")
    if run.start is not None and before is not None and before != hello.data:
        raise RunFolderError(
            f"{str(run.folder)!r} cannot be resumed with other data: the fingerprints differ "
            f"(was {before}, is {hello.data})"
        )


class _Step(NamedTuple):
    """A training step that was answered."""

    answer: Answer
    ensemble_s: float


class CoordinatorLoop:
    """The coordinator's walk through the plan."""

    def __init__(
        self,
        run: Run,
        hellos: Sequence[Hello],
        exchange: Exchange,
        stop: Callable[[], bool],
        tell: Callable[[Event], None],
    ) -> None:
        self.run_, self.exchange, self.stop, self.tell = run, exchange, stop, tell
        self.recipe, self.plan = run.recipe, Plan(**hellos[0].plan)
        self.hasty = run.folder.within(HASTE_S)
        bank = make_bank(run.recipe, self.plan.samples, hellos[0].classes)
        self.coordinator = Coordinator(run.recipe, bank, walks_of(run.recipe, self.plan))
        self.record = Record(run, self.plan)
        self.step: _Step | None = None
        self.told = 0.0
        if run.start is not None:
            state = read_part(run.folder, run.start, COORDINATOR)
            self.coordinator.load_state_dict(state["coordinator"])
            self.record.load_state_dict(state)
            if bank is not None:
                for name in (name for name in run.start.parts if name.startswith(PREFIX)):
                    bank.load(read_part(run.folder, run.start, name))
        placement, plan = _placement(hellos), self.plan
        generation = {"run": run.id, "number": run.generation}
        update_record(
            run.folder, state="running", data=hellos[0].data, placement=placement, generation=generation
        )
        tell(Started(run.recipe.names, placement, plan.epochs, plan.steps_per_epoch, run.step))

    def run(self) -> bool:
        """Take every turn; whether the end of the run was reached."""
        try:
            for turn in self.plan.turns(self.run_.step):
                if Flag.STOP in self._take(turn):
                    if turn.kind is Kind.TRAIN:
                        self._take(Turn(Kind.CHECKPOINT, turn.epoch, turn.step + 1))
                    self._tell_trouble(self.record.flush(HASTE_S))
                    self._tell_trouble(_try(lambda: update_record(self.hasty, state="interrupted")))
                    return False
            return True
        finally:
            self.record.close()
            if self.coordinator.bank is not None:
                self.coordinator.bank.close()

    def _take(self, turn: Turn) -> Flag:
        """One turn: gather, check, answer; then note the step, while the students learn from it."""
        exchange, pulse = self.exchange, self.exchange.board.pulse
        pulse.enter("gather", turn.step)
        exchange.mine.begin(turn.kind, turn.step, turn.part)
        exchange.answer.begin(turn.kind, turn.step, turn.part)
        limits = self.recipe.limits
        messages = exchange.gather(limits.startup_s if turn.kind is Kind.CHECKPOINT else None)
        pulse.enter("ensemble")
        with_rows = turn.kind is Kind.TRAIN and sends_target(self.recipe)
        try:
            self._answer(turn, messages)
        except KdclError as error:
            exchange.board.report(error.at(step=turn.step, phase="ensemble"))
            exchange.answer.header["flags"] = Flag.REFUSED
            exchange.broadcast(with_rows)
            raise
        if self._may_stop(turn) and (self.stop() or any(Flag.STOP in m.flags for m in messages)):
            exchange.answer.header["flags"] = Flag.STOP
        pulse.enter("broadcast")
        flags = exchange.broadcast(with_rows).flags
        pulse.enter("record")
        self._note_step(turn)
        return flags

    def _answer(self, turn: Turn, messages: Sequence[Message]) -> None:
        check_messages(
            messages, self.recipe.members, turn, run=self.run_.number, generation=self.run_.generation
        )
        self.record.numbers([message.numbers for message in messages])
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

    def _may_stop(self, turn: Turn) -> bool:
        """Where the run can be taken up again: between steps of an epoch, and after a checkpoint."""
        if turn.kind is Kind.TRAIN:
            return (turn.step + 1) % self.plan.steps_per_epoch != 0
        return turn.kind is Kind.CHECKPOINT and turn.epoch + 1 < self.plan.epochs

    def _train(self, turn: Turn, messages: Sequence[Message]) -> None:
        started = time.perf_counter()
        parts = by_student(messages, [member.student for member in self.recipe.members])
        answer = self.coordinator.answer(parts, turn.step)
        if answer.target is not None:
            self.exchange.answer.put(answer.target.ids, answer.target.log_probabilities)
        self.step = _Step(answer, time.perf_counter() - started)

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
        self.coordinator.add_holdout(self.coordinator.align(messages))
        if turn.part + 1 == self.plan.holdout_batches:
            self.coordinator.update_weights()
            self.record.weights(turn, self.coordinator.weights_S)

    def _evaluate(self, turn: Turn, messages: Sequence[Message]) -> None:
        aligned = self.coordinator.align(messages)
        self.record.test(turn, aligned, self.coordinator.predict(aligned))
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
            for member, message in zip(self.recipe.members, messages, strict=True)
            if member.replica == 0
        }
        if (bank := self.coordinator.bank) is not None:
            parts |= {name: write_part(folder, turn.step, name, part) for name, part in bank.parts(turn.step)}
        commit(folder, Manifest(turn.step, parts | {COORDINATOR: own}))
        self.tell(CheckpointSaved(turn.step))
        self._tell_trouble(_try(lambda: prune(self.hasty, self.recipe.checkpoint.keep)))

    def _finish(self) -> None:
        """Note the end. The last checkpoint has all: who cannot write here can resume and write then."""
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


def _placement(hellos: Sequence[Hello]) -> dict[str, dict[str, str | int]]:
    fields = ("host", "pid", "device", "parameters")
    return {hello.name: {field: asdict(hello)[field] for field in fields} for hello in hellos}

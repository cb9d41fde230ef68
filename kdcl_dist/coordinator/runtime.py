"""The coordinator's place in the cast: it calls the students together, and again after each failure."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import Protocol

from kdcl_dist.config.rounds import Plan
from kdcl_dist.coordinator.agreement import check_agreement, check_same_data
from kdcl_dist.coordinator.loop import CoordinatorLoop, Held
from kdcl_dist.coordinator.recovery_policy import gives_up, goes_on
from kdcl_dist.coordinator.roster import Absences
from kdcl_dist.errors import (
    CoordinatorCutOff,
    CoordinatorLost,
    KdclError,
    StorageError,
    wrap,
)
from kdcl_dist.exchange.group import Exchange
from kdcl_dist.exchange.layout import Wire
from kdcl_dist.exchange.message import Flag
from kdcl_dist.membership.failure_detector import await_all
from kdcl_dist.membership.monitor import Board
from kdcl_dist.membership.rendezvous import Call, Hello, Meeting, Ready
from kdcl_dist.membership.store import Store, scoped
from kdcl_dist.run.checkpoint import Manifest, newest
from kdcl_dist.run.events import Event, Note, Started
from kdcl_dist.run.process import prepare_process
from kdcl_dist.run.run import (
    Run,
    next_generation,
    past_failures,
    read_record,
    record_failure,
    record_survival,
    update_record,
)

__all__ = ["Processes", "run_coordinator"]

#: Seconds for which the store stays open after a failure, so that all can read its cause.
LINGER_S = 10.0


class Processes(Protocol):
    """What the coordinator asks of whoever started the cast's processes."""

    def is_gone(self, name: str, pid: int) -> bool:
        """Whether a member's process is known to be dead."""

    def end(self, name: str, pid: int) -> None:
        """End a member's process that does not answer, so that it is replaced."""

    def notice(self) -> str | None:
        """Once for each: that a member's host will soon be taken away."""


def run_coordinator(
    run: Run,
    store: Store,
    *,
    host: str,
    stop: Callable[[], bool],
    tell: Callable[[Event], None],
    processes: Processes | None = None,
) -> bool:
    """Coordinate a run to its end, over all generations of its exchange group.

    Args:
        run: the run.
        store: the store that this process hosts.
        host: this process's address.
        stop: asked at each step whether the run shall stop, with a checkpoint.
        tell: hears what happens.
        processes: knows the cast's processes; None: nobody replaces one.

    Returns:
        True at the end of the run, False when it was stopped before, after a checkpoint.

    Raises:
        CoordinatorCutOff: this process cannot reach the store; another coordinator can go on.
        KdclError: the failure that ended the run.
    """
    names = [member.name for member in run.recipe.members]
    is_gone = None if processes is None else processes.is_gone
    board = Board(scoped(store, run.id), names, len(names), is_gone=is_gone)
    board.start_pulse(host, slow_s=run.recipe.limits.step_s / 2)
    try:
        prepare_process(run, threads=1)
        return _Chair(run, board, host, stop, tell, processes).run()
    finally:
        with contextlib.suppress(CoordinatorLost):
            board.await_byes(LINGER_S)
        board.close()


class _Chair:
    """Calls the cast together, and again after each failure that the run survives.

    Attributes:
        held: what the coordinator knows; None where it takes that from the newest checkpoint.
        away: places of the students that the others do not wait for.
    """

    def __init__(
        self,
        run: Run,
        board: Board,
        host: str,
        stop: Callable[[], bool],
        tell: Callable[[Event], None],
        processes: Processes | None,
    ) -> None:
        self.run_, self.recipe, self.board, self.host = run, run.recipe, board, host
        self.stop, self.tell, self.processes = stop, tell, processes
        self.meeting = Meeting(board)
        self.past = past_failures(run)
        self.number = next_generation(run)
        self.held: Held | None = None
        self.away: set[int] = set()
        self.failed: set[int] = set()
        self.absences = Absences(run.recipe.names, read_record(run.folder).get("absences", ()))

    def run(self) -> bool:
        """Coordinate; see `run_coordinator`."""
        try:
            if self.number > 0:  # another coordinator was here, and died
                self.run_.sweep()
                self._recover(CoordinatorLost("the coordinator died"))
            while True:
                try:
                    flags = self._generation(self.stop)
                except Exception as error:
                    self._recover(wrap(error, student=None, step=None, phase=self.board.pulse.phase))
                else:
                    if Flag.REFORM not in flags:
                        self.meeting.close(Flag.STOP not in flags)
                        return Flag.STOP not in flags
                self.number += 1
        except CoordinatorCutOff:
            raise
        except Exception as error:
            cause = wrap(error, student=None, step=None, phase="recovery")
            cause.at(host=self.host if cause.student is None else None)
            record_failure(self.run_, cause)
            self.meeting.end(cause)
            raise cause from error
        finally:
            self._forget()

    def _generation(self, stop: Callable[[], bool]) -> Flag:
        """Coordinate from one call to the end of the run, the next call, or the first failure."""
        board = self.board
        board.enter(self.number, step=self.held.position.step if self.held else None)
        ready = self.meeting.assemble(self._awaited(), self.recipe.limits.startup_s)
        self._learn_of_loss([each.lost for each in ready.values() if each.lost is not None])
        present = [place for place in self._places() if set(self._ranks([place])) <= set(ready)]
        ranks = self._ranks(present)
        hellos = [ready[rank].hello for rank in ranks]
        run = replace(self.run_, start=self._start(), generation=self.number)
        plan = self._agreed(run, hellos)
        restored = self._settle(run, plan, {rank: ready[rank] for rank in ranks}, present)
        assert self.held is not None
        held = self.held
        self.meeting.call(Call(self.number, run.start, held.position, tuple(present), restored), ranks)
        processes = {rank: (ready[rank].hello.host, ready[rank].hello.pid) for rank in ranks}
        board.enter(self.number, ranks, processes, held.position.step)
        exchange: Exchange | None = None
        try:
            await_all(board, self.recipe.limits.startup_s)
            exchange = Exchange(
                board,
                scoped(board.store, str(self.number)),
                host=self.host,
                wire=Wire.of(self.recipe, hellos[0].classes),
                run=run.number,
                generation=self.number,
                step_s=self.recipe.limits.step_s,
            )
            self._announce(run, plan, hellos)
            loop = CoordinatorLoop(
                run,
                plan,
                held,
                present,
                exchange,
                stop=stop,
                returns=self._returns,
                notice=(lambda: None) if self.processes is None else self.processes.notice,
                tell=self.tell,
            )
            flags = loop.run()
            exchange.flush()
            return flags
        except Exception as error:
            if error is board.cause:
                raise
            pulse = board.pulse
            raise board.report(wrap(error, student=None, step=pulse.step, phase=pulse.phase)) from error
        finally:
            if exchange is not None:
                exchange.close()

    def _learn_of_loss(self, told: Sequence[KdclError]) -> None:
        """Complete the record of a coordinator that died by what the students saw of it; once."""
        cause = self.past[-1] if self.past else None
        if told and isinstance(cause, CoordinatorLost) and cause.host is None:
            last = max(told, key=lambda error: error.step or 0)
            cause.at(step=last.step, phase=last.phase, host=last.host).detail = last.detail
            with contextlib.suppress(StorageError):
                record_survival(self.run_, self.past)

    # -- who takes part --------------------------------------------------------------------------

    def _places(self) -> range:
        return range(len(self.recipe.students))

    def _ranks(self, places: Sequence[int]) -> list[int]:
        """The ranks of some students' workers."""
        return [rank for rank, member in enumerate(self.recipe.members) if member.student in places]

    def _awaited(self) -> list[int]:
        """The ranks without which the cast does not go on."""
        there = [place for place in self._places() if place not in self.away]
        return self._ranks(there if self._suffice(there) else self._places())

    def _suffice(self, there: Sequence[int]) -> bool:
        """Whether some students are enough to go on with."""
        failure, teacher = self.recipe.failure, self.recipe.distillation.teacher
        least = 1 if failure.policy == "stop" else min(failure.min_students, len(self._places()))
        has_teacher = teacher is None or self.recipe.names.index(teacher) in there
        return len(there) >= least and has_teacher

    def _returns(self) -> bool:
        """Whether a student that is away is ready to join again."""
        found = [place for place in self.away if self.meeting.waits_for(self._ranks([place]))]
        for error in self.meeting.failures():
            self.tell(Note(f"warning: {error}"))
        return bool(found)

    def _agreed(self, run: Run, hellos: Sequence[Hello]) -> Plan:
        """The plan that all mean, after a look at whether they do."""
        check_agreement(hellos)
        check_same_data(run, hellos[0])
        return Plan(**hellos[0].plan)

    # -- where it goes on ------------------------------------------------------------------------

    def _start(self) -> Manifest | None:
        """The checkpoint from which those take their state who have none, or all of them."""
        if self.held is not None:
            return self.held.saved
        if self.number == 0:
            return self.run_.start
        return newest(self.run_.folder, lambda text: self.tell(Note(f"warning: {text}")))

    def _settle(
        self, run: Run, plan: Plan, ready: dict[int, Ready], present: Sequence[int]
    ) -> tuple[int, ...]:
        """Decide at which turn all go on, in `held`; the students that take up their state of a checkpoint.

        Students that go on may be a turn apart: one got the coordinator's answer, another did not. All go on
        at the foremost turn, without the step that they did not take.
        """
        self.away = set(self._places()) - set(present)
        if self.held is None:
            self.held = Held.of(run, plan, next(iter(ready.values())).hello.classes)
            self.absences.rewind(run.start)
            return tuple(present)
        foremost, restored = self.held.position.rewound, []
        for place in present:
            positions = {ready[rank].position for rank in self._ranks([place])}
            position = positions.pop()
            if position is None or positions or place in self.failed:  # its replicas may differ by a step
                restored.append(place)
                self.held.coordinator.bad_steps.pop(place, None)
            elif position.moment > foremost.moment:
                foremost = position.rewound
        self.held.position = foremost
        if self.held.coordinator.walks is not None:
            self.held.coordinator.walks.interrupt()
        self.failed -= set(present)
        for line in self.absences.note(present, restored, foremost.step, run.start):
            self.tell(Note(line))
        return tuple(restored)

    def _announce(self, run: Run, plan: Plan, hellos: Sequence[Hello]) -> None:
        assert self.held is not None
        fields = ("host", "pid", "device", "parameters")
        placement = {hello.name: {field: asdict(hello)[field] for field in fields} for hello in hellos}
        update_record(
            run.folder,
            state="running",
            data=hellos[0].data,
            placement=placement,
            generation={"run": run.id, "number": self.number},
            absences=self.absences.found,
        )
        step = self.held.position.step
        self.tell(Started(self.recipe.names, placement, plan.epochs, plan.steps_per_epoch, step))

    # -- failures --------------------------------------------------------------------------------

    def _recover(self, cause: KdclError) -> None:
        """Make room for the next generation; raises the cause where the run ends with it."""
        failure = self.recipe.failure
        if isinstance(cause, CoordinatorLost) and len(self.past) < failure.allowed:
            self._check_store()
        lost = self._lost(cause)
        if gives_up(failure, self.past, cause):
            if failure.policy == "stop" and goes_on(cause):
                self._save(lost)
            raise cause
        self.past.append(cause)
        if self.processes is not None:
            for name, pid in self.board.lost:
                self.processes.end(name, pid)
        if failure.policy == "continue" and self.held is not None and goes_on(cause):
            self.away |= lost
            self.failed |= lost
            then = (
                "the others go on" if self._suffice([p for p in self._places() if p not in self.away]) else ""
            )
            then = (
                then or f"fewer than {failure.min_students} are left (failure.min_students): they wait for it"
            )
        else:
            self._forget()
            then = "all go back to the newest checkpoint"
        count = f"failure {len(self.past)} of at most {failure.max_failures}"
        self.tell(Note(f"{cause}; {then} ({count}, failure.max_failures)"))
        with contextlib.suppress(StorageError):
            record_survival(self.run_, self.past)

    def _check_store(self) -> None:
        """See that this process reaches its store, without which it would lose every generation."""
        try:
            self.board.has("over")
        except CoordinatorLost as error:
            raise CoordinatorCutOff(error.message, host=self.host, phase="recovery") from error

    def _lost(self, cause: KdclError) -> set[int]:
        """Places of the students that a failure takes out."""
        names = {name for name, _ in self.board.lost} | {cause.student}
        members = enumerate(self.recipe.members)
        by_worker = {member.student for _, member in members if member.name in names}
        return by_worker | {place for place, name in enumerate(self.recipe.names) if name in names}

    def _save(self, lost: set[int]) -> None:
        """Let those who are left take a checkpoint."""
        self.away |= lost
        if self.held is None or not self._suffice([p for p in self._places() if p not in self.away]):
            return
        self.number += 1
        try:
            self._generation(lambda: True)
            step = None if self.held.saved is None else self.held.saved.step
            self.tell(Note(f"the state of the others at step {step} is saved: --resume goes on from there"))
        except Exception as error:
            self.tell(Note(f"warning: the others could not save their state: {error}"))

    def _forget(self) -> None:
        """Turn away from what is not of a checkpoint."""
        if self.held is not None:
            self.held.close()
        self.held, self.away, self.failed = None, set(), set()

"""A student's place in the cast: through one generation of its exchange group after another."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict, replace

import torch

from kdcl_dist.config.rounds import Turn
from kdcl_dist.config.student import Member
from kdcl_dist.data.training_data import Session
from kdcl_dist.errors import CoordinatorLost, KdclError, NonFiniteLogits, from_dict, wrap
from kdcl_dist.exchange.group import Exchange
from kdcl_dist.exchange.layout import Wire
from kdcl_dist.exchange.message import Flag
from kdcl_dist.exchange.replicas import Replicas, broke_off
from kdcl_dist.membership.endpoint import Endpoint
from kdcl_dist.membership.failure_detector import await_all, explain
from kdcl_dist.membership.monitor import Board
from kdcl_dist.membership.rendezvous import Call, Hello, Meeting, RunEnded
from kdcl_dist.membership.store import connect_store, scoped
from kdcl_dist.run.checkpoint import read_part
from kdcl_dist.run.process import prepare_process
from kdcl_dist.run.run import Run, versions
from kdcl_dist.student.loop import StudentLoop
from kdcl_dist.student.student import Student

__all__ = ["Find", "run_student"]

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
    how: KdclError | None = None
    while True:
        endpoint = find(lost)
        try:
            return _Seat(run, rank, endpoint, host, device, stop, how).run()
        except CoordinatorLost as error:
            error.at(host=endpoint.host)
            if not run.recipe.failure.allowed:
                raise
            # A copy: the error's frames hold the network that was trained here, and the step's activations.
            lost, how = endpoint, from_dict(error.to_dict())


class _Seat:
    """A student's place under one coordinator.

    Attributes:
        position: the turn that the student takes next; None before its first generation.
        lost: how the student lost the coordinator before this one, if there was one.
    """

    def __init__(
        self,
        run: Run,
        rank: int,
        endpoint: Endpoint,
        host: str,
        device: torch.device,
        stop: Callable[[], bool],
        lost: KdclError | None,
    ) -> None:
        self.lost = lost
        self.run_, self.host, self.device, self.stop = run, host, device, stop
        self.member, self.limits = run.recipe.members[rank], run.recipe.limits
        self.spec = run.recipe.students[self.member.student]
        self.store = scoped(connect_store(endpoint, self.limits.startup_s), run.id)
        names = [each.name for each in run.recipe.members]
        self.board = Board(self.store, names, rank, generation=-1)  # of none until it is called
        self.meeting = Meeting(self.board)
        self.position: Turn | None = None

    def run(self) -> bool:
        """Take part until the run's end; errors as `run_student`."""
        try:
            self.board.start_pulse(self.host, slow_s=self.limits.step_s / 2)
            self._prepare()
            while True:
                call = self.meeting.join(self._hello(), self.position, self.limits.startup_s, self.lost)
                try:
                    flags = self._generation(call)
                except KdclError as error:
                    if not self._survives(error):
                        raise
                else:
                    if Flag.REFORM not in flags:
                        return Flag.STOP not in flags
        except RunEnded as ended:
            return ended.finished
        finally:
            self.board.say_bye()
            self.board.close()

    def _survives(self, error: KdclError) -> bool:
        """Whether this process stays: what broke the generation is another's failure, or one of numbers."""
        if error is not self.board.cause or isinstance(error, CoordinatorLost):
            return False
        return error.student != self.member.name or isinstance(error, NonFiniteLogits)

    def _prepare(self) -> None:
        """Open the data, build the student, and find what is wrong before the cast comes together."""
        try:
            self.board.pulse.enter("start")
            self.session = Session.open(self.run_.recipe)
            self.student = _build(self.run_, self.member, self.device, self.session)
            _try_out(self.student, self.session, self.member)
        except Exception as error:
            cause = wrap(error, student=self.member.name, step=None, phase="start").at(host=self.host)
            self.meeting.report(cause)
            raise cause from error

    def _hello(self) -> Hello:
        cuda = self.device.type == "cuda"
        return Hello(
            name=self.member.name,
            host=self.host,
            pid=os.getpid(),
            device=torch.cuda.get_device_name(self.device) if cuda else "cpu",
            parameters=self.student.parameters,
            classes=self.student.classes,
            plan=asdict(self.session.plan),
            data=self.session.fingerprints,
            versions=versions(),
        )

    def _generation(self, call: Call) -> Flag:
        """Train from the turn of the call until the last that it has, or the first failure."""
        board, run = self.board, replace(self.run_, start=call.start, generation=call.number)
        members = run.recipe.members
        present = [rank for rank, each in enumerate(members) if each.student in call.students]
        exchange: Exchange | None = None
        replicas: Replicas | None = None
        try:
            board.enter(call.number, present, step=call.at.step)
            self._take_up(call)
            await_all(board, self.limits.startup_s)
            if self.spec.replicas > 1:
                replicas = self._join_replicas(call.number)
            exchange = Exchange(
                board,
                scoped(self.store, str(call.number)),
                host=self.host,
                wire=Wire.of(run.recipe, self.student.classes),
                run=run.number,
                generation=call.number,
                step_s=self.limits.step_s,
                pinned=self.device.type == "cuda",
            )
            loop = StudentLoop(run, self.member, self.student, self.session, exchange, call, self.stop)
            try:
                return loop.run()
            finally:
                self.position = loop.position
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

    def _take_up(self, call: Call) -> None:
        """Bring the student to the state in which the call wants it."""
        state = None if self.member.student in call.restored else self.student.state_dict()
        if state is not None and self.spec.replicas == 1:
            return
        if self.position is not None:  # what it learned, and how its replicas were joined, is undone
            self.student = _build(self.run_, self.member, self.device, self.session)
        if state is None and call.start is not None and self.spec.name in call.start.parts:
            state = read_part(self.run_.folder, call.start, self.spec.name)
        if state is not None:
            self.student.load_state_dict(state)

    def _join_replicas(self, generation: int) -> Replicas:
        try:
            replicas = Replicas(
                scoped(self.store, f"{generation}/replicas/{self.spec.name}"),
                self.member.replica,
                self.spec.replicas,
                host=self.host,
                device=self.device,
                limit_s=max(self.limits.startup_s, self.limits.step_s),
            )
            self.student.join(replicas)
        except RuntimeError as error:
            if broke_off(error):
                raise explain(self.board, error, limit_s=self.limits.step_s) from error
            raise
        return replicas


def _build(run: Run, member: Member, device: torch.device, session: Session) -> Student:
    return Student(
        run.recipe,
        member.student,
        replica=member.replica,
        classes=len(session.train.classes),
        channels=session.train.channels,
        device=device,
        resumed=run.start is not None and run.recipe.students[member.student].name in run.start.parts,
    )


def _try_out(student: Student, session: Session, member: Member) -> None:
    """Find what is wrong with a network or its data before the cast comes together."""
    student.check_output(next(session.testing()).images[:2])
    first = session.first_views(member.student, 2)
    student.try_step(first.images, first.labels)

"""A fault of each kind, of each process, in each phase: all end with one cause, and no checkpoint is lost.

The processes of a run are threads over real process groups here, so a case takes half a second. In
test_recovery.py and test_continue.py they are processes that die, hang, or are cut off.
"""

from __future__ import annotations

import contextlib
import gc
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from cohorts import Cohort, MakeRecipe, assert_same, recipe_text, weights
from torch import Tensor

from kdcl_dist.config.recipe_file import parse_recipe
from kdcl_dist.config.rounds import Kind, Round
from kdcl_dist.coordinator import runtime
from kdcl_dist.coordinator.loop import CoordinatorLoop
from kdcl_dist.errors import (
    CoordinatorFailed,
    CoordinatorLost,
    KdclError,
    LabelMismatch,
    MisalignedIds,
    ShapeMismatch,
    StaleContribution,
    StudentFailed,
    StudentLost,
)
from kdcl_dist.exchange import group
from kdcl_dist.exchange.group import Exchange
from kdcl_dist.exchange.message import Flag, Message
from kdcl_dist.membership.diagnosis import GRACE_S
from kdcl_dist.membership.heartbeat import Heartbeat
from kdcl_dist.membership.monitor import COORDINATOR, Monitor
from kdcl_dist.membership.rendezvous import Rendezvous
from kdcl_dist.run.checkpoint import latest
from kdcl_dist.run.metrics import read_metrics
from kdcl_dist.run.prepare import prepare
from kdcl_dist.run.record import read_record
from kdcl_dist.run.run import Run
from kdcl_dist.student.loop import StudentLoop

MakeRun = Callable[..., Run]
#: Steps 0 to 2, held-out samples, tests, a checkpoint; steps 3 to 5, and the same again.
OVERRIDES = ("batch_size=16", "distillation.method=general", "data.holdout_per_class=3", "limits.step_s=150")
#: Seconds from a fault to the end of the last thread; without the fault's message it would be limits.step_s.
FOUND_S = 60.0


@pytest.fixture(scope="module")
def undisturbed(data: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The run without a fault."""
    recipe = parse_recipe(recipe_text(data), OVERRIDES)
    run = prepare(recipe, str(tmp_path_factory.mktemp("runs")), "whole", resume=False, warn=print)
    assert not Cohort(run).train().errors
    return run


class Fault:
    """What happens as one thread enters a phase of a step, by default an exception; `at` is the time."""

    def __init__(
        self,
        patch: pytest.MonkeyPatch,
        who: str,
        phase: str,
        step: int,
        meet: Callable[[], None] | None = None,
    ) -> None:
        self.where, self.at = (who, phase, step), 0.0
        init, enter = Monitor.__init__, Heartbeat.enter
        begin, finish = StudentLoop._start_message, CoordinatorLoop._finish

        def named(monitor: Monitor, *arguments: Any, **more: Any) -> None:
            init(monitor, *arguments, **more)
            monitor.heartbeat.who = monitor.name  # type: ignore[attr-defined]

        def entered(heartbeat: Heartbeat, phase: str, step: int | None = None) -> None:
            enter(heartbeat, phase, step)
            if (getattr(heartbeat, "who", None), phase, heartbeat.step) == self.where and not self.at:
                self.at = time.monotonic()
                if meet is None:
                    raise ArithmeticError("an injected fault")
                meet()

        def begun(loop: StudentLoop, round: Round) -> None:
            if round.kind is Kind.END:
                loop.exchange.monitor.heartbeat.enter("end")
            begin(loop, round)

        def finished(loop: CoordinatorLoop) -> None:
            loop.exchange.monitor.heartbeat.enter("end")
            finish(loop)

        patch.setattr(Monitor, "__init__", named)
        patch.setattr(Heartbeat, "enter", entered)
        patch.setattr(StudentLoop, "_start_message", begun)
        patch.setattr(CoordinatorLoop, "_finish", finished)


class Links:
    """The connections of a cohort's exchange group: those opened since the first process joined it."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.before: set[str] | None = None
        form, lock = group.form_gloo, threading.Lock()

        def formed(*arguments: Any, **more: Any) -> Any:
            with lock:
                self.before = set(links_here()) if self.before is None else self.before
            return form(*arguments, **more)

        patch.setattr(group, "form_gloo", formed)

    def cut(self) -> None:
        """Reset them, as a firewall would, when the others wait."""
        time.sleep(0.2)
        for name, entry in links_here().items():
            if name in (self.before or ()):
                continue
            with contextlib.suppress(OSError), socket.socket(fileno=os.dup(entry)) as link:
                if link.family == socket.AF_INET:
                    link.getpeername()  # one that listens has none
                    link.shutdown(socket.SHUT_RDWR)


def one_cause(cohort: Cohort) -> KdclError:
    """The error that every thread ends with."""
    assert cohort.errors.keys() == {"a", "b", COORDINATOR}
    assert len({str(error) for error in cohort.errors.values()}) == 1, cohort.errors
    error = cohort.errors["a"]
    assert isinstance(error, KdclError)
    assert read_record(cohort.run.folder)["cause"]["message"] == error.message
    return error


def assert_nothing_is_lost(run: Run, undisturbed: Run, saved: int) -> None:
    """The saved state stays, a resumed run ends as one without the fault, and no partial file is left."""
    kept = latest(run.folder, print)
    assert (kept.step if kept else 0) == saved
    root = str(Path(run.folder.local or "").parent)
    again = prepare(run.recipe, root, run.name, resume=saved > 0, warn=print) if saved else None
    if again is not None:
        assert not Cohort(again).train().errors
        for name in ("a", "b"):
            assert_same(weights(run.folder, 6, name), weights(undisturbed.folder, 6, name))
        assert read_record(run.folder)["results"] == read_record(undisturbed.folder)["results"]
    assert not list(Path(run.folder.local or "").rglob("*.tmp"))


def links_here() -> dict[str, int]:
    """Open sockets of this process, and their file descriptors."""
    found = {}
    for entry in list(Path("/proc/self/fd").iterdir()):
        with contextlib.suppress(OSError):  # closed by now
            if (name := str(entry.readlink())).startswith("socket:"):
                found[name] = int(entry.name)
    return found


def describe_links() -> str:
    """Threads and TCP connections of this process, to find what left one open."""
    inodes = {name[len("socket:[") : -1] for name in links_here()}
    lines = [line.split() for line in Path("/proc/self/net/tcp").read_text().splitlines()[1:]]
    links = [f"{line[1]}-{line[2]} in state {line[3]}" for line in lines if line[9] in inodes]
    return f"links {links}, threads {[thread.name for thread in threading.enumerate()]}"


def sockets() -> int:
    """Number of open sockets of this process."""
    gc.collect()
    return len(links_here())


@pytest.fixture(autouse=True)
def _no_socket_is_left() -> Iterator[None]:
    before = sockets()
    yield
    deadline = time.monotonic() + 60  # a store's own thread ends a moment after it
    while sockets() > before:
        assert time.monotonic() < deadline, f"{sockets() - before} sockets are left open, {describe_links()}"
        time.sleep(0.02)


EXCEPTIONS = [
    *(("b", phase, 4, 3) for phase in ("data", "forward", "gather", "broadcast", "backward")),
    ("b", "start", 0, 0),
    ("b", "evaluation", 3, 0),
    ("b", "checkpoint", 3, 0),
    ("b", "checkpoint", 6, 3),
    ("b", "end", 6, 6),
    *((COORDINATOR, phase, 4, 3) for phase in ("gather", "ensemble", "broadcast", "record")),
    (COORDINATOR, "start", 0, 0),
    (COORDINATOR, "checkpoint", 3, 0),
    (COORDINATOR, "checkpoint", 6, 3),
    (COORDINATOR, "end", 6, 6),
]


@pytest.mark.parametrize(("who", "phase", "step", "saved"), EXCEPTIONS)
def test_an_exception_is_the_cause_for_all(
    who: str,
    phase: str,
    step: int,
    saved: int,
    make_recipe: MakeRecipe,
    make_run: MakeRun,
    undisturbed: Run,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with monkeypatch.context() as patch:
        fault = Fault(patch, who, phase, step)
        cohort = Cohort(make_run(make_recipe(*OVERRIDES))).train()
        assert fault.at, "the fault was not met"
        assert time.monotonic() - fault.at < FOUND_S
    error = one_cause(cohort)
    assert isinstance(error, CoordinatorFailed if who == COORDINATOR else StudentFailed)
    assert (error.student, error.phase) == (None if who == COORDINATOR else who, phase)
    assert error.step == (None if phase == "start" else step)
    assert error.host == "127.0.0.1"
    assert "an injected fault" in error.message
    assert_nothing_is_lost(cohort.run, undisturbed, saved)


#: Seconds: the limits, longer than a machine stands still, and how much later all others must have ended. A
#: checkpoint has the limit of the start, and a coordinator the grace of docs/failures.md. What hangs would
#: come back after BLOCK_S.
STEP_S, STARTUP_S, MORE_S, BLOCK_S = 12.0, 20.0, 30.0, 90.0
BLOCKS = [
    *(("b", phase, 4, 3, STEP_S) for phase in ("data", "forward", "gather", "broadcast", "backward")),
    ("b", "evaluation", 3, 0, STEP_S),
    ("b", "checkpoint", 3, 0, STARTUP_S),
    ("b", "end", 6, 6, STEP_S),
    (COORDINATOR, "ensemble", 4, 3, STEP_S),
    (COORDINATOR, "gather", 4, 3, STEP_S + GRACE_S),
]


@pytest.mark.parametrize(("who", "phase", "step", "saved", "found_s"), BLOCKS)
def test_a_process_that_does_not_come_back_is_named_in_time(
    who: str,
    phase: str,
    step: int,
    saved: int,
    found_s: float,
    make_recipe: MakeRecipe,
    make_run: MakeRun,
    undisturbed: Run,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    limits = (f"limits.step_s={STEP_S}", f"limits.startup_s={STARTUP_S}")
    cohort = Cohort(make_run(make_recipe(*OVERRIDES, *limits)))
    others, blocked_s = {"a", "b", COORDINATOR} - {who}, 0.0
    waited_s, transfer = dict[str, float](), Exchange._run

    def block() -> None:
        nonlocal blocked_s
        began = time.monotonic()
        while not others <= cohort.errors.keys() | held and time.monotonic() < began + BLOCK_S:
            time.sleep(0.01)
        blocked_s = time.monotonic() - began
        raise SystemExit("ended, as a launcher would")

    def timed(exchange: Exchange, *arguments: Any) -> None:
        began = time.monotonic()
        try:
            transfer(exchange, *arguments)
        except KdclError:
            waited_s.setdefault(exchange.monitor.name, time.monotonic() - began)
            raise

    # A coordinator that has ended keeps its store open for living students, such as the one that blocks.
    held: set[str] = set()
    fail = Rendezvous.fail

    def ended(rendezvous: Rendezvous, cause: KdclError) -> None:
        fail(rendezvous, cause)
        held.add(COORDINATOR)

    with monkeypatch.context() as patch:
        patch.setattr(Rendezvous, "fail", ended)
        patch.setattr(Exchange, "_run", timed)
        patch.setattr(runtime, "LINGER_S", 1.0)
        fault = Fault(patch, who, phase, step, block)
        cohort.train()
        assert fault.at, "the fault was not met"
    assert max(waited_s[name] for name in others & waited_s.keys()) >= found_s
    assert blocked_s < found_s + MORE_S
    for name in others:
        error = cohort.errors[name]
        assert isinstance(error, CoordinatorLost if who == COORDINATOR else StudentLost)
        assert (error.student, error.step) == (None if who == COORDINATOR else who, step)
        assert ("limits.startup_s" if phase == "checkpoint" else "limits.step_s") in error.message
    assert_nothing_is_lost(cohort.run, undisturbed, saved)


#: The coordinator needs no connection to complete a checkpoint whose parts it has. Its end is the run's.
CUTS = [
    (who, phase, step, step if (who, phase) == (COORDINATOR, "checkpoint") else saved)
    for who, phase, step, saved in EXCEPTIONS
    if phase != "start" and (who, phase) != (COORDINATOR, "end")
]


@pytest.mark.parametrize(("who", "phase", "step", "saved"), CUTS)
def test_a_cut_link_is_named_by_all(
    who: str,
    phase: str,
    step: int,
    saved: int,
    make_recipe: MakeRecipe,
    make_run: MakeRun,
    undisturbed: Run,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with monkeypatch.context() as patch:
        links = Links(patch)
        fault = Fault(patch, who, phase, step, links.cut)
        cohort = Cohort(make_run(make_recipe(*OVERRIDES))).train()
        assert fault.at, "the fault was not met"
        assert time.monotonic() - fault.at < FOUND_S
    assert "although every process lives" in one_cause(cohort).message
    assert_nothing_is_lost(cohort.run, undisturbed, saved)


def test_a_link_that_is_cut_before_the_last_answer_ends_the_run_as_finished(
    make_recipe: MakeRecipe, make_run: MakeRun, undisturbed: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        links = Links(patch)
        fault = Fault(patch, COORDINATOR, "end", 6, links.cut)
        # Nothing comes after the last answer that would show whether the students have it, but the limit.
        cohort = Cohort(make_run(make_recipe(*OVERRIDES, f"limits.step_s={STEP_S}"))).train()
        assert fault.at, "the fault was not met"
        assert time.monotonic() - fault.at < FOUND_S
    assert not cohort.errors
    assert cohort.finished == {"a": True, "b": True, COORDINATOR: True}
    assert read_record(cohort.run.folder)["results"] == read_record(undisturbed.folder)["results"]


@pytest.mark.parametrize("phase", ["checkpoint", "broadcast"])
@pytest.mark.parametrize("why", ["notice", "stop"])
def test_a_student_that_leaves_in_a_requested_checkpoint_takes_no_step_from_the_others(
    phase: str, why: str, make_recipe: MakeRecipe, make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before it has sent its part's hash, or after: the others go on, and miss or repeat nothing."""
    asked = iter([False] * 4 + [why == "stop"])  # at steps 0, 1, the checkpoint after 2, 3, and 4
    learned: list[int] = []
    learn, checkpoint = StudentLoop._learn, CoordinatorLoop._checkpoint
    notices = iter([False] * 4 + [why == "notice"])  # at steps 0, 1, 2, 3 and 4

    def counted(loop: StudentLoop, round: Round, *arguments: Any) -> Any:
        if loop.student.spec.name == "a":
            learned.append(round.step)
        return learn(loop, round, *arguments)

    def late(loop: CoordinatorLoop, round: Round, messages: Any) -> None:
        deadline = time.monotonic() + 60
        while round.step == 5 and "b" not in cohort.errors:  # until b has left
            assert time.monotonic() < deadline
            time.sleep(0.01)
        checkpoint(loop, round, messages)

    survivors_can_continue = ("failure.policy=continue", "failure.max_failures=1", "failure.min_students=1")
    with monkeypatch.context() as patch:
        patch.setattr(StudentLoop, "_learn", counted)
        patch.setattr(CoordinatorLoop, "_checkpoint", late)
        patch.setattr(
            CoordinatorLoop, "_interruption", lambda *_: Flag.SAVE if next(notices, False) else Flag.NONE
        )
        fault = Fault(patch, "b", phase, 5)
        cohort = Cohort(
            make_run(make_recipe(*OVERRIDES, *survivors_can_continue, "distillation.method=mean"))
        )
        cohort.train(lambda: next(asked, False))
        assert fault.at, "the fault was not met"
    assert cohort.errors.keys() == {"b"}
    ends = why == "notice" or phase == "checkpoint"  # else all parts were there, and so the run has stopped
    assert cohort.finished == {"a": ends, COORDINATOR: ends}
    assert len(learned) == (6 if ends else 5)
    if not ends:
        kept = latest(cohort.run.folder, print)
        assert kept is not None
        assert kept.step == 5
        return
    assert set(read_record(cohort.run.folder)["results"]) >= {"a"}
    rows = read_metrics(cohort.run.folder).to_pylist()
    steps = [r["step"] for r in rows if (r["student"], r["split"], r["name"]) == ("a", "train", "loss")]
    assert len(steps) == len(set(steps))
    assert {*steps, 4} == set(range(6))  # the figures of a step come with the next message, which may be lost


Put = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]
#: What student b sends instead of its rows.
WRONG: dict[str, tuple[Put, type[KdclError]]] = {
    "ids": (lambda ids, logits, labels: (ids + 1, logits, labels), MisalignedIds),
    "labels": (lambda ids, logits, labels: (ids, logits, (labels + 1) % 4), LabelMismatch),
    "too few rows": (lambda ids, logits, labels: (ids[1:], logits[1:], labels[1:]), ShapeMismatch),
    "a class too many": (lambda i, logits, y: (i, torch.cat([logits, logits[:, :1]], 1), y), ShapeMismatch),
}
STEP_OF = {Kind.TRAIN: 4, Kind.HOLDOUT: 3, Kind.EVALUATE: 3}


def sends(patch: pytest.MonkeyPatch, kind: Kind, change: Put) -> None:
    """Change what b sends in one round."""
    put = Message.write_rows

    def changed(message: Message, ids: Tensor, logits: Tensor, labels: Tensor | None = None) -> None:
        header = message.header
        sent = int(header["sender"]), int(header["kind"]), int(header["step"])
        if labels is not None and sent == (1, int(kind), STEP_OF[kind]):
            ids, logits, labels = change(ids, logits, labels)
        put(message, ids, logits, labels)

    patch.setattr(Message, "write_rows", changed)


@pytest.mark.parametrize("kind", STEP_OF)
@pytest.mark.parametrize("what", WRONG)
def test_what_does_not_fit_is_refused(
    kind: Kind,
    what: str,
    make_recipe: MakeRecipe,
    make_run: MakeRun,
    undisturbed: Run,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    change, expected = WRONG[what]
    with monkeypatch.context() as patch:
        sends(patch, kind, change)
        cohort = Cohort(make_run(make_recipe(*OVERRIDES))).train()
    error = one_cause(cohort)
    assert isinstance(error, expected), error
    # When two students disagree either may be wrong; shapes are known to all.
    assert error.student in (("b",) if expected is ShapeMismatch else ("a", "b", None))
    assert (error.step, error.host) == (STEP_OF[kind], "127.0.0.1")
    assert_nothing_is_lost(cohort.run, undisturbed, 3 if kind is Kind.TRAIN else 0)


@pytest.mark.parametrize("kind", [Kind.TRAIN, Kind.HOLDOUT, Kind.EVALUATE, Kind.CHECKPOINT, Kind.END])
def test_a_round_behind_is_refused(
    kind: Kind,
    make_recipe: MakeRecipe,
    make_run: MakeRun,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reset = Message.reset

    def late(message: Message, round: Kind, step: int, part: int = 0, flags: Flag = Flag.NONE) -> None:
        behind = int(message.header["sender"]) == 1 and round is kind and step >= 3
        reset(message, round, step - 1 if behind else step, part, flags)

    with monkeypatch.context() as patch:
        patch.setattr(Message, "reset", late)
        cohort = Cohort(make_run(make_recipe(*OVERRIDES))).train()
    error = one_cause(cohort)
    assert isinstance(error, StaleContribution)
    assert error.student == "b"


@pytest.mark.parametrize("kind", STEP_OF)
def test_numbers_that_are_not_finite_hurt_nobody(
    kind: Kind, make_recipe: MakeRecipe, make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        sends(patch, kind, lambda ids, logits, labels: (ids, logits * torch.nan, labels))
        cohort = Cohort(make_run(make_recipe(*OVERRIDES))).train()
    assert not cohort.errors
    for name in ("a", "b"):
        for value in weights(cohort.run.folder, 6, name).values():
            assert bool(torch.isfinite(value).all())
    results = read_record(cohort.run.folder)["results"]
    assert all(0 <= each["top1"] <= 1 and each["loss"] < 10 for each in results.values())

"""The waits of a run on Ray have limits, and a failure of Ray Train itself loses no run; Ray does not run."""

from __future__ import annotations

import multiprocessing
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from cohorts import MakeRecipe
from ray.exceptions import GetTimeoutError, RayActorError
from ray.train import ControllerError, WorkerGroupError

from kdcl_dist.errors import CoordinatorLost, KdclError, StartupTimeout, StudentFailed, from_dict
from kdcl_dist.launch.messages import CohortAsked
from kdcl_dist.launch.preflight.placement import Need, needs_of
from kdcl_dist.launch.ray import coordinator, worker
from kdcl_dist.launch.ray import head as head_module
from kdcl_dist.launch.ray import trainers as trainers_module
from kdcl_dist.launch.ray.coordinator import EventCursor, Progress, Whereabouts
from kdcl_dist.launch.ray.spares import Assigned, Places
from kdcl_dist.membership.endpoint import Endpoint
from kdcl_dist.run.events import Event, Note, Warned
from kdcl_dist.run.record import update_record
from kdcl_dist.run.run import Run

MakeRun = Callable[..., Run]
DIED = "the controller of Ray Train died"
SEVERAL = "several workers of Ray died at once, and its controller ended"


class Trainers:
    """Trainers that do in turn what a test says.

    Attributes:
        turns: what each start does; it is told the kind of its workers.
        progress: of the run, as the coordinator tells.
        outcome: as the coordinator tells.
        hang: ends one that hangs.
        stop: asks the run to stop.
    """

    def __init__(self, patch: pytest.MonkeyPatch, run: Run) -> None:
        self.run, self.turns, self.events = run, list[Callable[[int], object]](), list[Event]()
        self.hang, self.stop = threading.Event(), threading.Event()
        self.progress = Progress(frozenset({0}), has_begun=True)
        self.outcome: bool | dict[str, object] = True
        patch.setattr(trainers_module, "LEAVE_S", 0.1)
        patch.setattr(trainers_module, "_trainer", self.make)
        patch.setattr(trainers_module, "turn", lambda wait: nullcontext())
        patch.setattr(trainers_module, "await_room", lambda needs, wait: None)
        self.actor = SimpleNamespace(
            events=SimpleNamespace(remote=lambda cursor: (cursor, [])),
            stop=SimpleNamespace(remote=lambda: self.progress.has_begun),
            progress=SimpleNamespace(remote=lambda: self.progress),
            await_outcome=SimpleNamespace(remote=lambda: self.outcome),
        )
        self.head_is_lost = False
        head = SimpleNamespace(address="h:1", limit_s=30.0, is_away=False, is_lost=lambda: self.head_is_lost)
        self.head = head
        patch.setattr(trainers_module, "Head", lambda: head)
        patch.setattr(trainers_module, "HEADLESS_S", 0.1)
        patch.setattr(trainers_module.ray, "get", lambda answer, timeout: answer)

    def make(self, run: Run, needs: Sequence[Need], devices: Sequence[str], kind: int) -> SimpleNamespace:
        return SimpleNamespace(fit=lambda: self.turns.pop(0)(kind))

    def train(self) -> bool:
        needs = needs_of(self.run.recipe)
        return trainers_module.Trainers(self.run, self.actor, needs, self.events.append, self.stop).fit()


@pytest.fixture
def trainers(
    monkeypatch: pytest.MonkeyPatch, make_run: MakeRun, make_recipe: MakeRecipe
) -> Iterator[Trainers]:
    made = Trainers(monkeypatch, make_run(make_recipe("failure.max_failures=2")))
    yield made
    made.hang.set()
    for thread in threading.enumerate():
        if thread.name == "kdcl-trainer":
            thread.join(60)


def dies(kind: int) -> None:
    raise RayActorError


def fails_over_a_second_death(kind: int) -> None:
    raise ControllerError(RayActorError())


@pytest.mark.parametrize(("end", "why"), [(dies, DIED), (fails_over_a_second_death, SEVERAL)])
def test_a_controller_that_death_ends_is_made_again(
    end: Callable[[int], None], why: str, trainers: Trainers
) -> None:
    trainers.turns = [end, end, lambda kind: None]
    assert trainers.train()
    notes = [event.text for event in trainers.events if isinstance(event, Note)]
    assert notes == [f"{why}; another starts the workers again"] * 2


@pytest.mark.parametrize(("end", "why"), [(dies, DIED), (fails_over_a_second_death, SEVERAL)])
def test_a_controller_that_death_ends_too_often_ends_the_run_in_one_line(
    end: Callable[[int], None], why: str, trainers: Trainers
) -> None:
    trainers.turns = [end, end, end]
    with pytest.raises(KdclError, match=rf"{why}; out of memory, or killed by hand\? --resume goes on"):
        trainers.train()
    assert not trainers.turns


@pytest.mark.parametrize(("state", "finished"), [("finished", True), ("interrupted", False)])
def test_a_failure_after_the_end_is_recorded_ends_nothing(
    state: str, finished: bool, trainers: Trainers
) -> None:
    update_record(trainers.run.folder, state=state)
    trainers.turns = [dies]
    assert trainers.train() is finished
    assert not trainers.events


def test_a_controller_that_hangs_after_the_end_is_left(trainers: Trainers) -> None:
    trainers.turns = [lambda kind: trainers.hang.wait(300)]
    trainers.progress = Progress(has_begun=True, is_over=True)
    began = time.monotonic()
    assert trainers.train()
    assert time.monotonic() - began < 200


def test_a_request_to_stop_ends_a_run_that_waits_for_its_workers(trainers: Trainers) -> None:
    trainers.turns = [lambda kind: trainers.hang.wait(300)]
    trainers.progress = Progress()
    trainers.stop.set()
    with pytest.raises(KeyboardInterrupt):
        trainers.train()


def test_without_a_head_the_run_is_stopped_and_ends_in_one_line(trainers: Trainers) -> None:
    """Though Ray Train hangs, before Ray ends this process."""
    stops: list[bool] = []

    def stop() -> bool:
        stops.append(True)
        trainers.progress, trainers.outcome = replace(trainers.progress, is_over=True), False
        return True

    trainers.actor.stop.remote, trainers.head_is_lost, trainers.head.is_away = stop, True, True
    trainers.turns = [lambda kind: trainers.hang.wait(300)]
    lost = "the head of the Ray cluster, h:1, is away for 30 s"
    with pytest.raises(KdclError, match=rf"^{lost}; start the cluster again, and use --resume$"):
        trainers.train()
    assert stops
    assert trainers.events == [Warned(f"{lost}; the run takes a checkpoint and ends")]


def test_an_answer_that_fails_loses_no_event(trainers: Trainers) -> None:
    """What the cursor has passed is not asked for again."""
    failures, asked = [GetTimeoutError()], list[EventCursor]()

    def progress() -> Progress:
        if failures:
            raise failures.pop()
        return trainers.progress

    def events(cursor: EventCursor) -> tuple[EventCursor, list[Event]]:
        asked.append(cursor)
        if len(asked) > 1:
            trainers.hang.set()
        return EventCursor("x", 1), [] if cursor.count else [Note("a line")]

    trainers.actor.progress.remote, trainers.actor.events.remote = progress, events
    trainers.turns = [lambda kind: trainers.hang.wait(300)]
    assert trainers.train()
    assert trainers.events == [Note("a line")]


def test_the_run_goes_on_while_only_who_has_joined_trains(
    trainers: Trainers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The driver passes on who is to join, and ends all workers with the run."""
    asked, told = CohortAsked(trainers.run.recipe, trainers.run.recipe), [True, True, False]
    calls: list[object] = []

    class Joined:
        failures = ()

        def __init__(self, *_: object) -> None:
            self.admit = calls.append

        @property
        def works(self) -> bool:
            calls.append("works")
            return told.pop(0)

        def care(self) -> None:
            calls.append("care")

        def close(self) -> None:
            calls.append("close")

    monkeypatch.setattr(trainers_module, "Joined", Joined)
    news = [[], [asked]]
    trainers.actor.events.remote = lambda cursor: (cursor, news.pop() if news else [])
    trainers.turns = [lambda kind: None]
    assert trainers.train()
    assert calls == ["works", asked, "care", "works", "care", "works", "close"]
    assert not trainers.events


def test_a_run_that_ends_while_the_head_is_away_does_not_wait_for_ray_train(
    trainers: Trainers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainers_module, "LEAVE_S", 300.0)
    trainers.turns = [lambda kind: trainers.hang.wait(300)]
    trainers.head.is_away, trainers.progress = True, replace(trainers.progress, is_over=True)
    began = time.monotonic()
    assert trainers.train()
    assert time.monotonic() - began < 200
    assert not trainers.events


def test_a_head_is_lost_that_takes_no_connection_for_half_of_rays_limit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now, listener = [0.0], socket.create_server(("127.0.0.1", 0))
    monkeypatch.setenv(head_module.VARIABLE, "20")
    found = head_module.Head(f"127.0.0.1:{listener.getsockname()[1]}", clock=lambda: now[0])

    def is_lost(seconds: float) -> bool:
        now[0] += seconds
        return found.is_lost()

    assert not is_lost(300)
    listener.close()
    assert not found.is_away
    assert [is_lost(4) for _ in range(4)] == [False, False, True, True]
    assert found.is_away


@pytest.fixture
def two_kinds(trainers: Trainers, make_recipe: MakeRecipe) -> Trainers:
    """Student "a" takes two cores, so its trainer is the first."""
    trainers.run = replace(
        trainers.run, recipe=make_recipe("failure.max_failures=2", "students.a.resources.cpu=2")
    )
    trainers.progress = Progress()
    return trainers


def test_a_kind_takes_its_places_when_the_one_before_has_them(two_kinds: Trainers) -> None:
    seen: list[tuple[int, frozenset[int]]] = []

    def trains(kind: int) -> None:
        seen.append((kind, two_kinds.progress.kinds))
        time.sleep(0.5)  # the next kind must not start meanwhile
        two_kinds.progress = Progress(frozenset({*range(kind + 1)}), has_begun=kind == 1)
        two_kinds.hang.wait(0.1)

    two_kinds.turns = [trains, trains]
    assert two_kinds.train()
    assert seen == [(0, frozenset()), (1, frozenset({0}))]
    assert two_kinds.events == [Note("on Ray, as soon as there is room for all: CPU 2 for a; CPU 1 for b")]


def test_a_kind_that_fails_before_all_are_there_ends_the_run_at_once(two_kinds: Trainers) -> None:
    def fails(kind: int) -> None:
        raise ValueError("no such label")

    def waits(kind: int) -> None:
        two_kinds.progress = Progress(frozenset({0}))
        two_kinds.hang.wait(300)

    two_kinds.turns = [waits, fails]
    with pytest.raises(KdclError, match=r"^Ray Train failed: ValueError: no such label$"):
        two_kinds.train()


def test_a_kind_that_finds_no_place_in_time_ends_the_run_at_once(two_kinds: Trainers) -> None:
    def hangs(kind: int) -> None:
        two_kinds.progress = Progress(frozenset({0}), is_over=kind == 1)
        two_kinds.hang.wait(300)

    two_kinds.turns, two_kinds.outcome = [hangs, hangs], StartupTimeout("b: no place").to_dict()
    with pytest.raises(StartupTimeout, match="b: no place"):
        two_kinds.train()


def test_the_controller_of_one_kind_is_made_again_while_the_other_works(two_kinds: Trainers) -> None:
    two_kinds.progress, started = Progress(frozenset({0, 1}), has_begun=True), list[int]()

    def dies_once(kind: int) -> None:
        started.append(kind)
        if len(started) == 2:
            raise RayActorError
        if len(started) == 3:
            two_kinds.hang.set()
        two_kinds.hang.wait(300)

    two_kinds.turns = [dies_once] * 3
    assert two_kinds.train()
    assert started == [0, 1, 1]


def test_the_first_cause_of_several_trainers_is_told(two_kinds: Trainers) -> None:
    def fails(kind: int) -> None:
        failure = StudentFailed("its own", student="b") if kind else CoordinatorLost("follows from it")
        raise WorkerGroupError("failed", {0: failure})

    two_kinds.progress, two_kinds.turns = Progress(frozenset({0, 1}), has_begun=True), [fails, fails]
    with pytest.raises(StudentFailed, match="its own"):
        two_kinds.train()


def actor_of(run: Run) -> Any:
    """The coordinator's actor before its workers are there, as an object of this process."""
    kind = coordinator.CoordinatorActor.__ray_metadata__.modified_class  # type: ignore[attr-defined]
    actor = kind.__new__(kind)
    actor.run, actor.places, actor.outcome = run, Places(run.recipe), None
    actor.some_are_here, actor.begun, actor.over = (threading.Event() for _ in range(3))
    return actor


def test_the_coordination_begins_with_the_last_kind(two_kinds: Trainers) -> None:
    actor = actor_of(two_kinds.run)
    actor.begin(1, [1], True)
    assert actor.progress() == Progress(frozenset({1}), has_begun=False, is_over=False)
    actor.begin(1, [1], False)  # a worker was replaced
    assert not actor.begun.is_set()
    actor.begin(0, [0], True)
    assert actor.progress().has_begun
    found = [actor.student_of((kind, 0), f"actor {kind}", None, [kind]) for kind in range(2)]
    assert found == [Assigned(0, is_over=False), Assigned(1, is_over=False)]


def test_the_wait_for_the_rest_of_the_cohort_has_a_limit(
    two_kinds: Trainers, make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(coordinator, "FIND_S", 0.01)
    short = make_recipe("students.a.resources.cpu=2", "limits.startup_s=0.1")
    actor = actor_of(replace(two_kinds.run, recipe=short))
    thread = threading.Thread(target=actor._coordinate, daemon=True)
    thread.start()
    assert not actor.is_over(0.3)
    assert not actor.progress().is_over, "without a limit for the first kind"
    actor.begin(0, [0], True)
    assert actor.student_of((0, 0), "actor", None, [0]).index is None
    assert actor.is_over(60)
    assert actor.student_of((0, 0), "actor", None, [0]) == Assigned(None, is_over=True)
    thread.join(60)
    assert actor.progress() == Progress(frozenset({0}), has_begun=False, is_over=True)
    error = from_dict(actor.await_outcome())
    assert isinstance(error, StartupTimeout)
    assert error.message.startswith("b: no place on the cluster within 0.1 s (limits.startup_s)")


@pytest.mark.parametrize("answers", [True, False])
def test_a_worker_waits_for_its_process_while_there_is_a_coordinator(
    answers: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "ANSWER_S", 0.02)
    ours, theirs = multiprocessing.Pipe()
    supervisor = worker.Supervisor.__new__(worker.Supervisor)
    supervisor.limit_s, asked = 0.1, list[float]()
    supervisor.actor = SimpleNamespace(is_over=SimpleNamespace(remote=lambda wait_s: False))

    def ask(ref: object) -> object:
        asked.append(time.monotonic())
        if len(asked) == 20:
            theirs.send("a message")
        return ref if answers else None

    monkeypatch.setattr(supervisor, "_ask", ask)
    sentinel, life = multiprocessing.Pipe()
    process = worker.Process("a", SimpleNamespace(sentinel=sentinel), ours)  # type: ignore[arg-type]
    if answers:
        supervisor._await_message(process)
        assert len(asked) == 20
    else:
        with pytest.raises(CoordinatorLost, match=r"limits\.startup_s"):
            supervisor._await_message(process)
    life.close()


@pytest.fixture
def member(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A worker's supervisor, with what the coordinator's actor answers in turn."""
    supervisor = worker.Supervisor.__new__(worker.Supervisor)
    supervisor.limit_s, supervisor.index = 60.0, 1
    supervisor.actor = SimpleNamespace(find=SimpleNamespace(remote=lambda lost: lost))
    member = SimpleNamespace(supervisor=supervisor, answers=[], patience=[], killed=[])

    def get(lost: object, timeout: float) -> object:
        member.patience.append(timeout)
        answer = member.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def kill(actor: object, no_restart: bool) -> None:
        member.killed.append(no_restart)

    monkeypatch.setattr(worker, "ray", SimpleNamespace(get=get, kill=kill))
    return member


def test_an_actor_that_hangs_is_ended_and_the_next_one_is_found(member: SimpleNamespace) -> None:
    here = Whereabouts(Endpoint("h", 1), is_over=False)
    member.answers = [GetTimeoutError(), RayActorError(), Whereabouts(None, is_over=False), here]
    assert member.supervisor._find_endpoint("lost") is here.endpoint
    assert member.killed == [False], "once, and Ray restarts it"
    assert sum(member.patience[:1]) <= 11


def test_a_member_that_missed_the_end_learns_of_it(member: SimpleNamespace) -> None:
    member.answers = [Whereabouts(None, is_over=True)]
    assert member.supervisor._find_endpoint("lost") is None
    assert not member.killed


def test_the_wait_for_another_coordinator_has_a_limit(member: SimpleNamespace) -> None:
    member.supervisor.limit_s, member.answers = 0.1, [Whereabouts(None, is_over=False)] * 1_000_000
    with pytest.raises(CoordinatorLost, match=r"limits\.startup_s"):
        member.supervisor._find_endpoint("lost")

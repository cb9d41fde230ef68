"""The waits of a run on Ray have limits, and a failure of Ray Train itself loses no run; Ray does not run."""

from __future__ import annotations

import multiprocessing
import threading
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import pytest
from cohorts import MakeRecipe
from ray.exceptions import RayActorError

from kdcl_dist.errors import CoordinatorLost, KdclError
from kdcl_dist.launch.preflight.placement import needs_of
from kdcl_dist.launch.ray import driver, worker
from kdcl_dist.run.events import Event, Note
from kdcl_dist.run.record import update_record
from kdcl_dist.run.run import Run

MakeRun = Callable[..., Run]
DIED = "the controller of Ray Train died"


class Trainers:
    """Trainers that do in turn what a test says.

    Attributes:
        hang: ends one that hangs.
        stop: asks the run to stop; the workers are not there before the run is over.
        is_over: whether the coordinator says that the run is over.
    """

    def __init__(self, patch: pytest.MonkeyPatch, run: Run) -> None:
        self.run, self.turns, self.events = run, list[Callable[[], object]](), list[Event]()
        self.hang, self.stop, self.is_over = threading.Event(), threading.Event(), False
        patch.setattr(driver, "LEAVE_S", 0.1)
        patch.setattr(driver, "_trainer", lambda *arguments: self)
        patch.setattr(driver._TrainerThread, "_outcome", lambda thread: True)
        actor = SimpleNamespace(
            events=SimpleNamespace(remote=lambda cursor: (cursor, [])),
            stop=SimpleNamespace(remote=lambda: self.is_over),
            is_over=SimpleNamespace(remote=lambda wait_s: self.is_over),
        )
        patch.setattr(driver.ray, "get_actor", lambda name: actor)
        patch.setattr(driver.ray, "get", lambda answer, timeout: answer)

    def fit(self) -> None:
        self.turns.pop(0)()

    def train(self) -> bool:
        return driver._TrainerThread(self.run, needs_of(self.run.recipe), self.events.append, self.stop).fit()


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


def dies() -> None:
    raise RayActorError


def test_a_controller_that_dies_is_made_again(trainers: Trainers) -> None:
    trainers.turns = [dies, dies, lambda: None]
    assert trainers.train()
    notes = [event.text for event in trainers.events if isinstance(event, Note)]
    assert notes == [f"{DIED}; another starts the workers again"] * 2


def test_a_controller_that_dies_too_often_ends_the_run_in_one_line(trainers: Trainers) -> None:
    trainers.turns = [dies, dies, dies]
    with pytest.raises(KdclError, match=rf"{DIED}; out of memory, or killed by hand\? --resume goes on"):
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
    trainers.turns = [lambda: trainers.hang.wait(300)]
    trainers.is_over = True
    began = time.monotonic()
    assert trainers.train()
    assert time.monotonic() - began < 200


def test_a_request_to_stop_ends_a_run_that_waits_for_its_workers(trainers: Trainers) -> None:
    trainers.turns = [lambda: trainers.hang.wait(300)]
    trainers.stop.set()
    with pytest.raises(KeyboardInterrupt):
        trainers.train()


@pytest.mark.parametrize("answers", [True, False])
def test_a_worker_waits_for_its_process_while_there_is_a_coordinator(
    answers: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "ANSWER_S", 0.02)
    ours, theirs = multiprocessing.Pipe()
    supervisor = worker._Supervisor.__new__(worker._Supervisor)
    supervisor.limit_s, asked = 0.1, list[float]()
    supervisor.actor = SimpleNamespace(endpoint=SimpleNamespace(remote=lambda lost: "an endpoint"))

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

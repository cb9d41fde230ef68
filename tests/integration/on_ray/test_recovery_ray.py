"""Faults on Ray: the dead process or worker is replaced, the others keep theirs."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from cohorts import Inject, MakeRecipe, assert_same, recipe_text, train, weights

from kdcl_dist.config.recipe_file import parse_recipe
from kdcl_dist.errors import ShapeMismatch
from kdcl_dist.launch.ray import coordinator
from kdcl_dist.launch.ray import driver as on_ray
from kdcl_dist.launch.ray.coordinator import EventCursor
from kdcl_dist.run.events import CheckpointSaved, Event, Note, Started, Stepped
from kdcl_dist.run.prepare import prepare
from kdcl_dist.run.record import read_record
from kdcl_dist.run.run import Run
from kdcl_dist.run.storage import Folder

MakeRun = Callable[..., Run]
OVERRIDES = ("failure.max_failures=3", "batch_size=20", "limits.step_s=150", "students.b.model=nets:Plain")


@pytest.fixture(scope="module")
def undisturbed(data: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """The run without a fault, in processes of this machine."""
    recipe = parse_recipe(recipe_text(data), OVERRIDES)
    run = prepare(recipe, str(tmp_path_factory.mktemp("runs")), "whole", resume=False, warn=print)
    train(run)
    return run.folder


def pids(events: list[Event], name: str) -> list[Any]:
    return [e.placement[name]["pid"] for e in events if isinstance(e, Started) and name in e.placement]


def worker_of(pid: int) -> int:
    """The worker of Ray that a student's process goes back to: it has started the server that was forked."""
    server = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    worker = int(Path(f"/proc/{server}/stat").read_text().rpartition(")")[2].split()[1])
    assert "ray::" in Path(f"/proc/{worker}/cmdline").read_text()
    return worker


def assert_nothing_left(events: list[Event]) -> None:
    deadline = time.monotonic() + 60
    while alive := [
        pid for name in ("a", "b") for pid in pids(events, name) if Path(f"/proc/{pid}").exists()
    ]:
        assert time.monotonic() < deadline, f"left behind: {alive}"
        time.sleep(0.1)


#: Faults that one run meets one after the other: who, phase, step, how.
FAULTS = (
    ("coordinator", "ensemble", 4, "kill"),
    ("b", "forward", 4, "kill"),
    ("b", "backward", 5, "exception"),
    ("b", "gather", 5, "stop"),
)


def test_a_run_with_faults_ends_as_one_without(
    inject: Inject, make_recipe: MakeRecipe, make_run: MakeRun, undisturbed: Folder
) -> None:
    met: list[Path] = []
    for who, phase, step, how in FAULTS:
        met.append(inject(who, phase, step, how, after=met[-1] if met else ""))
    run = make_run(make_recipe(*OVERRIDES, "failure.max_failures=4", "limits.step_s=15"))
    events: list[Event] = []
    assert on_ray.launch(run, events.append, threading.Event())
    assert all(path.exists() for path in met)
    for name in ("a", "b"):
        assert_same(weights(run.folder, 6, name), weights(undisturbed, 6, name))
    record = read_record(run.folder)
    assert record["state"] == "finished"
    assert record["results"] == read_record(undisturbed)["results"]
    lost = [cause["student"] for cause in record["failures"]["causes"]]
    assert lost == [None if who == "coordinator" else who for who, *_ in FAULTS]
    assert len(set(pids(events, "a"))) == 1, "a survivor's process was replaced"
    assert len(set(pids(events, "b"))) == 4, "once after each fault of its own"
    assert_nothing_left(events)
    logs = {
        name: (Path(str(run.folder)) / f"logs/{name}.log").read_text() for name in ("a", "b", "coordinator")
    }
    starts = {name: text.count(" starts ====") for name, text in logs.items()}
    assert starts == {"a": 1, "b": 4, "coordinator": 2}
    assert "Traceback" in logs["b"]
    assert "Traceback" not in logs["a"]


def await_spare(run: Run, worker: int) -> None:
    """Wait until Ray Train has started another spare than this worker."""
    title, deadline = f"ray::kdcl:{run.name}/spare", time.monotonic() + 120
    while True:
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with suppress(OSError):  # it has ended, or is another user's
                if title in path.read_text() and int(path.parent.name) != worker:
                    return
        assert time.monotonic() < deadline, "there is none"
        time.sleep(0.1)


def test_a_worker_of_ray_that_dies_is_replaced_by_a_spare_and_that_by_the_next(
    inject: Inject, make_recipe: MakeRecipe, make_run: MakeRun, undisturbed: Folder, tmp_path: Path
) -> None:
    """The worker that Ray Train starts in place of the first is the next spare."""
    killed = [tmp_path / "first", tmp_path / "second"]
    inject("coordinator", "gather", 4, "hold", until=killed[0])
    inject("b", "forward", 5, "hold", until=killed[1])  # the second process is the first to come so far
    run = make_run(make_recipe(*OVERRIDES, "failure.spares=1"))
    events, left = list[Event](), iter(killed)

    def on_event(event: Event) -> None:
        events.append(event)
        saved = isinstance(event, CheckpointSaved) and event.step == 3
        if saved or (isinstance(event, Started) and len(set(pids(events, "b"))) == 2):
            process = pids(events, "b")[-1]
            worker = worker_of(process)
            if not saved:
                await_spare(run, worker)
            for pid in (worker, process):  # which would end by itself, but maybe in its next step
                os.kill(pid, signal.SIGKILL)
            next(left).touch()

    assert on_ray.launch(run, on_event, threading.Event())
    assert [len(set(pids(events, name))) for name in ("a", "b")] == [1, 3]
    for name in ("a", "b"):
        assert_same(weights(run.folder, 6, name), weights(undisturbed, 6, name))
    assert Note("failure.spares: on Ray 1 more workers wait to take over (1 of CPU 1)") in events
    assert events.count(Note("b: its worker of Ray died; a spare takes over")) == 2
    record = read_record(run.folder)
    assert record["state"] == "finished"
    assert [spare["student"] for spare in record["spares"]] == ["b", "b"]
    assert_nothing_left(events)


def controller() -> int:
    """The process of Ray Train's controller in this session's cluster."""
    ours = os.environ["KDCL_TEST_FAULTS"].encode()
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):  # it has ended, or is another user's
            if (
                b"ray::TrainController" in path.read_bytes()
                and ours in (path.parent / "environ").read_bytes()
            ):
                return int(path.parent.name)
    raise AssertionError("there is none")


def test_the_run_goes_on_when_a_worker_of_ray_dies_and_then_the_controller_of_ray_train(
    inject: Inject, make_recipe: MakeRecipe, make_run: MakeRun, undisturbed: Folder, tmp_path: Path
) -> None:
    """Ray replaces the worker, and the other's process lives on; all workers end with the controller."""
    worker, all_workers = tmp_path / "worker", tmp_path / "all workers"
    inject("coordinator", "gather", 4, "hold", until=worker)
    replaced = inject("b", "start", 0, "hold", until=worker, after=worker)
    inject("coordinator", "gather", 5, "hold", until=all_workers, after=replaced)
    run, events = make_run(make_recipe(*OVERRIDES)), list[Event]()

    def on_event(event: Event) -> None:
        events.append(event)
        if isinstance(event, CheckpointSaved) and event.step == 3 and not worker.exists():
            os.kill(worker_of(pids(events, "b")[0]), signal.SIGKILL)
            worker.touch()
        if isinstance(event, Started) and len(pids(events, "b")) == 2:
            assert len(set(pids(events, "b"))) == 2
            assert len(set(pids(events, "a"))) == 1
            os.kill(controller(), signal.SIGKILL)
        if isinstance(event, Note) and "the controller of Ray Train died" in event.text:
            assert_nothing_left(events)
            all_workers.touch()

    assert on_ray.launch(run, on_event, threading.Event())
    for name in ("a", "b"):
        assert_same(weights(run.folder, 6, name), weights(undisturbed, 6, name))
    assert (len(set(pids(events, "a"))), len(set(pids(events, "b")))) == (2, 3)
    assert read_record(run.folder)["state"] == "finished"
    assert_nothing_left(events)


def test_a_failure_that_the_storage_does_not_take_is_raised_all_the_same(
    make_recipe: MakeRecipe, make_run: MakeRun
) -> None:
    run = make_run(make_recipe(*OVERRIDES, "students.b.model=nets:TooFewRows"))
    record = Path(run.folder.local or "") / "run.json"

    def on_event(event: Event) -> None:
        while isinstance(event, Started) and not record.is_dir():  # from here on nothing can be noted
            record.unlink(missing_ok=True)
            with suppress(FileExistsError):  # it was written meanwhile
                record.mkdir()

    with pytest.raises(ShapeMismatch, match="for 20 samples") as caught:
        on_ray.launch(run, on_event, threading.Event())
    assert (caught.value.student, caught.value.step) == ("b", 3)


def test_events_that_the_driver_has_received_are_forgotten() -> None:
    kind = coordinator.CoordinatorActor.__ray_metadata__.modified_class  # type: ignore[attr-defined]
    actor = kind.__new__(kind)
    actor.id, actor.pending_events = "one", deque()
    actor.discarded = 0
    cursor, received = EventCursor(), list[int]()
    for step in range(10):
        actor.pending_events += [Stepped(2 * step, {}), Stepped(2 * step + 1, {})]
        again, events = actor.events(cursor)  # an answer that does not arrive is given again
        assert events == actor.events(cursor)[1]
        cursor = again
        received += [event.step for event in events]
        assert len(actor.pending_events) == 2
    assert received == list(range(20))
    assert cursor.count == 20
    assert [e.step for e in actor.events(EventCursor("another", 7))[1]] == [18, 19]


def test_the_others_go_on_while_a_worker_is_replaced(
    inject: Inject, make_recipe: MakeRecipe, make_run: MakeRun
) -> None:
    inject("b", "forward", 4, "kill")
    inject("coordinator", "gather", 9, "hold", until="returns")
    more = ("failure.policy=continue", "failure.min_students=1", "epochs=4")
    run = make_run(make_recipe(*OVERRIDES, *more))
    events: list[Event] = []
    assert on_ray.launch(run, events.append, threading.Event())
    (absence,) = read_record(run.folder)["absences"]
    assert (absence["student"], absence["state_of"]) == ("b", 3)
    assert 4 <= absence["since"] <= absence["until"] < 12  # the process may be back within a step
    assert len(set(pids(events, "a"))) == 1
    assert set(read_record(run.folder)["results"]) == {"a", "b", "ensemble"}

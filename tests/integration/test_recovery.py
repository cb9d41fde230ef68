"""A process that dies, hangs or fails is replaced, the others stay, and the weights are the same."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from multiprocessing import active_children
from pathlib import Path
from typing import Any

import pytest
from cohorts import Inject, MakeRecipe, assert_same, recipe_text, train, weights

from kdcl_dist.config.recipe_file import parse_recipe
from kdcl_dist.errors import (
    ShapeMismatch,
    StudentFailed,
    StudentLost,
)
from kdcl_dist.launch import forkserver, local
from kdcl_dist.run.events import Event, Note, Started, Warned
from kdcl_dist.run.prepare import prepare
from kdcl_dist.run.record import read_record
from kdcl_dist.run.run import Run
from kdcl_dist.run.storage import Folder
from kdcl_dist.utils.process import is_over

MakeRun = Callable[..., Run]
#: Phases in which students wait for the coordinator; its last heartbeat may name another of them.
PHASES = ("gather", "broadcast", "ensemble", "record")
#: Steps 0 to 2, tests and a checkpoint, steps 3 to 5, tests and a checkpoint.
OVERRIDES = (
    "failure.max_failures=3",
    "batch_size=20",
    "limits.step_s=150",
    "students.b.model=nets:Plain",
)
REPLICAS = ("students.b.replicas=2", "students.b.sync_batchnorm=true", "students.b.model=cnn_small")
#: Seconds: the limit where a process hangs, longer than a machine stands still, and within which its failure
#: is noted. The next limit after it is limits.startup_s, which is 200.
HANGS_S, FOUND_S = 12.0, 60.0


@pytest.fixture(scope="module")
def undisturbed(data: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """The run without a fault."""
    recipe = parse_recipe(recipe_text(data), OVERRIDES)
    run = prepare(recipe, str(tmp_path_factory.mktemp("runs")), "whole", resume=False, warn=print)
    assert local.launch(run, lambda event: None, threading.Event())
    return run.folder


def assert_as_undisturbed(run: Run, undisturbed: Folder) -> None:
    for name in ("a", "b"):
        assert_same(weights(run.folder, 6, name), weights(undisturbed, 6, name))
    record, whole = read_record(run.folder), read_record(undisturbed)
    assert record["state"] == "finished"
    assert record["results"] == whole["results"]


def assert_nothing_is_left(run: Run, events: list[Event]) -> None:
    """No process, and so no port, of the run; no shared memory of its processes; no partial file."""
    known = {pid for name in ("a", "b") for pid in pids(events, name)}
    deadline = time.monotonic() + 100  # the server of processes may be slow to reap them
    while left := [pid for pid in known if Path(f"/proc/{pid}").exists()] + active_children():
        assert time.monotonic() < deadline, f"processes are left: {left}"
        time.sleep(0.02)
    shared = {path.name for path in Path("/dev/shm").iterdir()}
    assert not [name for name in shared for pid in known if f"_{pid}_" in name]
    assert not list(Path(run.folder.local or "").rglob("*.tmp"))


def pids(events: list[Event], name: str) -> list[Any]:
    return [event.placement[name]["pid"] for event in events if isinstance(event, Started)]


@pytest.mark.parametrize(
    ("who", "phase", "step", "how"),
    [
        ("b", "start", 0, "kill"),
        ("b", "data", 0, "kill"),
        ("b", "data", 4, "kill"),
        ("b", "forward", 4, "kill"),
        ("b", "forward", 4, "exception"),
        ("b", "gather", 4, "kill"),
        ("b", "broadcast", 4, "kill"),
        ("b", "backward", 4, "kill"),
        ("b", "backward", 5, "exception"),
        ("b", "evaluation", 3, "kill"),
        ("b", "checkpoint", 3, "kill"),
        ("b", "checkpoint", 6, "exception"),
        ("a", "data", 6, "kill"),
        ("coordinator", "gather", 4, "kill"),
        ("coordinator", "ensemble", 4, "kill"),
        ("coordinator", "ensemble", 4, "exception"),
        ("coordinator", "broadcast", 4, "kill"),
        ("coordinator", "record", 4, "kill"),
        ("coordinator", "checkpoint", 3, "kill"),
        ("b", "checkpoint", 3, "torn"),
        ("coordinator", "record", 3, "torn"),
        ("b", "gather", 4, "cut"),
        ("b", "gather", 4, "cut off"),
        ("coordinator", "gather", 4, "cut"),
        ("coordinator", "gather", 4, "cut off"),
        ("b", "end", 6, "kill"),
        ("b", "last answer", 6, "kill"),
        ("coordinator", "end", 6, "kill"),
        ("coordinator", "last answer", 6, "kill"),
        ("coordinator", "all done", 6, "kill"),
    ],
)
def test_a_run_with_a_fault_ends_as_one_without(
    who: str,
    phase: str,
    step: int,
    how: str,
    inject: Inject,
    make_recipe: MakeRecipe,
    make_run: MakeRun,
    undisturbed: Folder,
) -> None:
    # After the last step come two parts of the test pass, the checkpoint, and the end: the fourth gathering.
    nth = {"end": ("gather", 4), "last answer": ("broadcast", 4), "all done": ("record", 6)}
    at, number = nth.get(phase, (phase, 1))
    inject(who, at, step, how, number)
    run = make_run(make_recipe(*OVERRIDES))
    events = train(run)
    assert_as_undisturbed(run, undisturbed)
    if phase in ("last answer", "all done"):  # nobody may wait for what is lost then
        return
    if (who, how) == ("coordinator", "kill"):
        (cause,) = read_record(run.folder)["failures"]["causes"]
        assert (cause["error"], cause["host"]) == ("CoordinatorLost", "127.0.0.1")
        assert cause["step"] in (step, step + 1)  # the students may have its answer, and wait for the next
        assert cause["phase"] in (*PHASES, phase)
    survivor = "a" if who != "a" else "b"
    assert len(set(pids(events, survivor))) == 1, "a survivor's process was replaced"
    notes = " ".join(event.text for event in events if isinstance(event, Note | Warned))
    replaced = [name for name in ("a", "b", "coordinator") if f"{name}: process" in notes]
    # A coordinator that raises forms the next generation itself, and a broken connection is made again. A
    # student that cannot reach the coordinator's store asks for another coordinator.
    lives = (who, how) in (("b", "cut"), ("coordinator", "exception"))
    expected = [] if lives else ["coordinator"] if how == "cut off" else [who]
    assert replaced == expected
    assert_nothing_is_left(run, events)


def test_a_number_that_changed_is_undone(
    tmp_path: Path, make_recipe: MakeRecipe, make_run: MakeRun, undisturbed: Folder
) -> None:
    """One bit of a logit, from which the other student has learned by the time at which it is found."""
    flips = f"students.b.model={{name: 'nets:Flips', once: {tmp_path / 'flipped'}}}"
    run = make_run(make_recipe(*OVERRIDES, flips, "failure.verify_every_steps=5"))
    events = train(run)
    assert_as_undisturbed(run, undisturbed)
    (cause,) = read_record(run.folder)["failures"]["causes"]
    assert (cause["error"], cause["student"], cause["step"]) == ("SilentCorruption", "b", 4)
    assert cause["host"] == "127.0.0.1"
    assert cause["message"].startswith("logits, sent logits")
    assert [len(set(pids(events, name))) for name in ("a", "b")] == [1, 2]
    assert_nothing_is_left(run, events)


@pytest.mark.parametrize(
    ("who", "phase", "how"),
    [
        ("b", "forward", "stop"),
        ("b", "data", "block"),
        ("coordinator", "ensemble", "stop"),
        ("coordinator", "ensemble", "block"),
    ],
)
def test_a_process_that_hangs_is_found_ended_and_replaced(
    who: str,
    phase: str,
    how: str,
    inject: Inject,
    make_recipe: MakeRecipe,
    make_run: MakeRun,
    undisturbed: Folder,
) -> None:
    fault = inject(who, phase, 4, how)
    run, received = make_run(make_recipe(*OVERRIDES, f"limits.step_s={HANGS_S}")), list[tuple[float, Event]]()
    local.launch(run, lambda event: received.append((time.time(), event)), threading.Event())
    events = [event for _, event in received]
    assert_as_undisturbed(run, undisturbed)
    noted = next(t for t, e in received if isinstance(e, Note | Warned) and "failure.max_failures" in e.text)
    assert noted - fault.stat().st_mtime < FOUND_S
    causes = read_record(run.folder)["failures"]["causes"]
    assert len(causes) == 1
    if who == "b":
        # A stopped process cannot say where it is: then the phase is that in which the others wait for it.
        phases = (phase, "gather") if how == "stop" else (phase,)
        assert (causes[0]["student"], causes[0]["step"]) == ("b", 4)
        assert causes[0]["phase"] in phases
        assert "limits.step_s" in causes[0]["message"]
    if how == "block":
        assert "time.sleep(600)" in causes[0]["detail"], "the stack of the process that hangs is reported"
    why = "ended, since" if who == "b" else "ended, since a student does not reach its store"
    assert any(why in event.text for event in events if isinstance(event, Note | Warned))


def test_two_that_die_one_after_the_other(
    inject: Inject, make_recipe: MakeRecipe, make_run: MakeRun, undisturbed: Folder
) -> None:
    inject("a", "forward", 1, "kill")
    inject("b", "backward", 4, "kill")
    inject("coordinator", "gather", 5, "kill")
    run = make_run(make_recipe(*OVERRIDES))
    train(run)
    assert_as_undisturbed(run, undisturbed)


@pytest.mark.parametrize(("step", "how"), [(0, "kill"), (0, "exception"), (3, "kill"), (3, "exception")])
def test_a_student_that_fails_before_the_group_is_formed_is_found_at_once(
    step: int,
    how: str,
    inject: Inject,
    make_recipe: MakeRecipe,
    make_run: MakeRun,
    undisturbed: Folder,
) -> None:
    """When it takes up its state: in the first generation, or when all go back to a checkpoint."""
    if step:
        inject("a", "forward", 4, "kill")
        fault = inject("b", "start", 3, how)
    else:
        fault = inject("b", "start", 0, how, nth=2)
    run, received = make_run(make_recipe(*OVERRIDES)), list[tuple[float, Event]]()
    local.launch(run, lambda event: received.append((time.time(), event)), threading.Event())
    assert_as_undisturbed(run, undisturbed)
    noted = [t for t, e in received if isinstance(e, Note | Warned) and "failure.max_failures" in e.text]
    assert noted[-1] - fault.stat().st_mtime < FOUND_S
    *_, cause = read_record(run.folder)["failures"]["causes"]
    assert cause["error"] == ("StudentLost" if how == "kill" else "StudentFailed")
    assert (cause["student"], cause["step"], cause["phase"]) == ("b", step, "start")


@pytest.fixture(scope="module")
def undisturbed_replicas(data: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """The run with replicas, without a fault."""
    recipe = parse_recipe(recipe_text(data), (*OVERRIDES, *REPLICAS))
    run = prepare(recipe, str(tmp_path_factory.mktemp("runs")), "whole", resume=False, warn=print)
    train(run)
    return run.folder


@pytest.mark.parametrize(
    ("phase", "step"), [("start", 0), ("forward", 4), ("backward", 4), ("evaluation", 3)]
)
def test_replicas_are_replaced_too(
    phase: str,
    step: int,
    inject: Inject,
    make_recipe: MakeRecipe,
    make_run: MakeRun,
    undisturbed_replicas: Folder,
) -> None:
    """Batch norm, gradients and buffers are shared between them: the replica that lives is not to blame."""
    inject("b/1", phase, step, "kill", nth=1 if step else 2)
    run = make_run(make_recipe(*OVERRIDES, *REPLICAS))
    events = train(run)
    assert_as_undisturbed(run, undisturbed_replicas)
    (cause,) = read_record(run.folder)["failures"]["causes"]
    assert (cause["error"], cause["student"]) == ("StudentLost", "b/1")
    assert len(set(pids(events, "b/0"))) == 1


def test_many_processes_that_fail_at_once_are_one_failure(
    inject: Inject, make_recipe: MakeRecipe, make_run: MakeRun
) -> None:
    for name in ("b/0", "b/1"):
        inject(name, "forward", 4, "stop")
    more = ("students.b.replicas=2", "failure.max_failures=1", f"limits.step_s={HANGS_S}")
    run = make_run(make_recipe(*OVERRIDES, *more))
    events = train(run)
    (cause,) = read_record(run.folder)["failures"]["causes"]
    assert "b/0, b/1 did not answer" in cause["message"]
    notes = [event.text for event in events if isinstance(event, Note | Warned)]
    assert sum("ended, since it did not answer" in text for text in notes) == 2


def test_a_process_that_dies_is_replaced_though_its_own_child_lives(
    inject: Inject, make_recipe: MakeRecipe, make_run: MakeRun, undisturbed: Folder
) -> None:
    inject("b", "forward", 4, "kill with a child")
    run = make_run(make_recipe(*OVERRIDES))
    events = train(run)
    assert_as_undisturbed(run, undisturbed)
    assert len(set(pids(events, "b"))) == 2


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_student_is_replaced_though_the_server_that_forks_it_is_dead_or_stopped(
    number: int,
    inject: Inject,
    make_recipe: MakeRecipe,
    make_run: MakeRun,
    undisturbed: Folder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(forkserver, "ANSWER_S", 1.0)
    ended = tmp_path / "ended"
    inject("coordinator", "gather", 1, "hold", until=ended)
    inject("b", "forward", 4, "kill")
    run, events = make_run(make_recipe(*OVERRIDES)), list[Event]()

    def on_event(event: Event) -> None:
        events.append(event)
        if isinstance(event, Started) and not ended.exists():
            os.kill(forkserver._server_pid() or 0, number)
            ended.touch()

    assert local.launch(run, on_event, threading.Event())
    assert_as_undisturbed(run, undisturbed)
    assert len(set(pids(events, "a"))) == 1, "a survivor's process was replaced"
    assert len(set(pids(events, "b"))) == 2
    assert all(is_over(pid) for name in ("a", "b") for pid in pids(events, name))
    assert not active_children()


def test_code_that_fails_at_the_same_step_again_ends_the_run(
    make_recipe: MakeRecipe, make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "GRACE_S", 3.0)
    run = make_run(make_recipe(*OVERRIDES, "students.b.model=nets:Raises"))
    with pytest.raises(StudentFailed, match="a user's mistake") as caught:
        train(run)
    assert (caught.value.student, caught.value.step, caught.value.phase) == ("b", 3, "forward")
    record = read_record(run.folder)
    assert record["state"] == "failed"
    assert len(record["failures"]["causes"]) == 1


def test_a_mistake_of_the_user_is_not_tried_again(make_recipe: MakeRecipe, make_run: MakeRun) -> None:
    run, events = make_run(make_recipe(*OVERRIDES, "students.b.model=nets:TooFewRows")), list[Event]()
    with pytest.raises(ShapeMismatch, match="for 20 samples") as caught:
        local.launch(run, events.append, threading.Event())
    assert (caught.value.student, caught.value.step, caught.value.host) == ("b", 3, "127.0.0.1")
    assert not [event.text for event in events if isinstance(event, Note | Warned)]


def test_a_student_that_always_dies_uses_up_the_failures(make_recipe: MakeRecipe, make_run: MakeRun) -> None:
    recipe = make_recipe(*OVERRIDES, "students.b.model=nets:Killed", "failure.max_failures=2")
    run = make_run(recipe, "r")
    with pytest.raises(StudentLost) as caught:
        train(run)
    assert caught.value.student == "b"
    assert len(read_record(run.folder)["failures"]["causes"]) == 2
    log = Path(str(run.folder)) / "logs/b.log"
    assert log.read_text().count("killed by SIGKILL; out of memory, or killed by hand\n") == 3
    assert make_run(recipe, "r", resume=True).step == 3

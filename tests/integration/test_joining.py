"""Students that join and leave by the recipe: the weights are those of the sequential reference."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from cohorts import Cohort, Inject, MakeRecipe
from equality import VIEWS, check

from kdcl_dist import models, training
from kdcl_dist.cli import kdcl
from kdcl_dist.config.recipe import Recipe
from kdcl_dist.coordinator import loop
from kdcl_dist.coordinator.live_change import LiveChange
from kdcl_dist.errors import StudentLost
from kdcl_dist.evaluation import evaluate
from kdcl_dist.export.source import Source
from kdcl_dist.launch import local
from kdcl_dist.report.writing import write_report
from kdcl_dist.run.checkpoint import latest
from kdcl_dist.run.cohort_requests import ask
from kdcl_dist.run.events import CheckpointSaved, Event, Note, Started, Warned
from kdcl_dist.run.metrics import read_metrics
from kdcl_dist.run.record import read_record
from kdcl_dist.run.run import Run, load_run
from kdcl_dist.run.storage import Folder
from kdcl_dist.utils.process import is_over

MakeRun = Callable[..., Run]
#: Of four epochs with three steps: `a` has all, `b` leaves after the second, `c` is there in the second and
#: third, and `d`, which learns for one epoch and then goes on teaching, from the third on.
COHORT = """students=[
    {name: a, model: cnn_small},
    {name: b, model: mlp, optimizer: {lr: 0.05}, until_epoch: 2},
    {name: c, model: mlp, from_epoch: 2, until_epoch: 3, schedule: {name: cosine, min_lr: 0.001}},
    {name: d, model: cnn_small, from_epoch: 3, epochs: 1, ema: {decay: 0.5}}]"""
CASES = {
    "linear, measured, verified": [
        "failure.verify_every_steps=1",
        "analysis.every_steps=2",
        "evaluate.every_epochs=4",
        "checkpoint.every_epochs=4",
    ],
    "general, in parts": ["distillation.method=general", "data.holdout_per_class=3", "accumulate=2"],
    "general, all anew": [
        "distillation.method=general",
        "data.holdout_per_class=3",
        "students.a.until_epoch=3",
        "students.b.until_epoch=3",
        "students.d.from_epoch=4",
    ],
    "switokd, own data, and one is left": [
        "distillation.method=switokd",
        "students.a.data={share: [0, 0.5], sees: all}",
        "students.a.until_epoch=3",
        "students.d.epochs=2",
    ],
    "dml, and one is left": ["distillation.method=dml", "students.a.until_epoch=3", "students.d.epochs=2"],
    "mean, in windows": ["distillation={method: mean, window: 4}", "batch_size=7"],
    "naive, coordinators": ["distillation.method=naive", "coordinators=2"],
}


@pytest.fixture
def make_cohort(make_recipe: MakeRecipe) -> Callable[..., Recipe]:
    return lambda *overrides: make_recipe(COHORT, "epochs=4", *overrides)


def losses(run: Run, name: str) -> list[int]:
    """The training steps of which there are figures of a student."""
    rows = read_metrics(run.folder).to_pylist()
    wanted = (name, "train", "loss")
    return [row["step"] for row in rows if (row["student"], row["split"], row["name"]) == wanted]


def epochs_of(run: Run, name: str, per_epoch: int) -> set[int]:
    """The epochs of which there are figures of a student's training steps."""
    steps = losses(run, name)
    assert len({*steps}) == len(steps)
    return {step // per_epoch for step in steps}


@pytest.mark.parametrize("case", CASES)
def test_stopped_and_resumed_it_equals_the_reference(
    case: str, make_cohort: Callable[..., Recipe], make_run: MakeRun, capsys: pytest.CaptureFixture[str]
) -> None:
    """Stopped in the third epoch, when `b` has left and `d` has joined, or just before it joins."""
    recipe, asked = make_cohort(*CASES[case]), itertools.count()
    per_epoch = 8 if "batch_size=7" in CASES[case] else 3
    stop_at = 2 * per_epoch + 1
    assert not Cohort(make_run(recipe, "r")).train(stop=lambda: next(asked) >= stop_at).errors
    run = make_run(recipe, "r", resume=True)
    assert run.start is not None
    assert run.epoch >= 2
    assert "warn" not in capsys.readouterr().out
    assert not Cohort(run).train().errors
    check(run)
    for index, student in enumerate(recipe.students):
        own = {epoch for epoch in range(4) if index in recipe.cohort(epoch)}
        assert epochs_of(run, student.name, per_epoch) == own
    record = read_record(run.folder)
    assert set(record["results"]) == {"a", "b", "c", "d", "ensemble", "d/ema", "ensemble/ema"}
    assert record["absences"] == []
    begins = [0, *(end + 1 for end in recipe.changes)]
    assert record["cohort"] == [
        {"step": epoch * per_epoch, "students": [recipe.names[index] for index in recipe.cohort(epoch)]}
        for epoch in begins
    ]


def test_processes_come_and_go(
    make_cohort: Callable[..., Recipe], make_run: MakeRun, inject: Inject, tmp_path: Path
) -> None:
    """The others keep their processes, whether one joins, leaves or dies: in its epochs, or before."""
    path = tmp_path / "mlp.pt"
    torch.manual_seed(5)
    torch.save(models.build("mlp", 4, 1).state_dict(), path)
    frozen = ["students.c.frozen=true", f"students.c.weights={path}", "students.c.replicas=2"]
    failure = "failure={max_failures: 2, verify_every_steps: 2}"
    recipe = make_cohort(VIEWS, *frozen, failure, "checkpoint.keep=9", "limits.step_s=150")
    killed = tmp_path / "killed"
    inject("coordinator", "gather", 2, "hold", until=killed)
    met = inject("c/1", "forward", 7, "kill")
    run, events, gone = make_run(recipe), list[Event](), list[str]()

    def on_event(event: Event) -> None:
        events.append(event)
        if isinstance(event, Started) and not killed.exists():
            os.kill(process_of("d"), signal.SIGKILL)
            killed.touch()
        if isinstance(event, Note) and event.text == "d joins at step 6":
            gone.append("b" if await_end(pids(events, "b")[0]) else "")

    assert local.launch(run, on_event, threading.Event())
    check(run)
    assert met.exists()
    assert gone == ["b"]
    assert {name: len(pids(events, name)) for name in ("a", "b", "c/0", "c/1", "d")} == {
        "a": 1,
        "b": 1,
        "c/0": 1,
        "c/1": 2,
        "d": 1,
    }
    record = read_record(run.folder)
    assert set(record["placement"]) == {"a", "b", "c/0", "c/1", "d"}
    assert [cause["student"] for cause in record["failures"]["causes"]] == ["c/1"]
    found = evaluate(run.folder.uri, device="cpu", warn=print)
    assert list(found.results) == list(record["results"])
    for results in (found.results, record["results"]):
        del results["c"]  # in last bits its replicas' shares of a batch differ from the whole
    assert found.results == record["results"]
    first = evaluate(run.folder.uri, device="cpu", warn=print, epoch=1).results
    assert set(first) == {"a", "b", "ensemble", "ensemble/ema"}
    for epoch, members in ((1, "ab"), (2, "abc"), (4, "ad")):
        source = Source.load(run.folder.uri, "ensemble", epoch=epoch, warn=print)
        assert [student.name for student in source.members] == [*members]
    assert "Who took part" in Path(write_report([run.folder.uri])).read_text()


def test_the_death_of_who_joins_later_costs_nothing_under_stop(
    make_cohort: Callable[..., Recipe], make_run: MakeRun, inject: Inject
) -> None:
    """The coordinator does not miss `d`, and is asked to stop: it takes a checkpoint of the step."""
    inject("coordinator", "gather", 1, "hold", until="stop")
    run = make_run(make_cohort("failure.policy=stop", "limits.step_s=150"))

    def on_event(event: Event) -> None:
        if isinstance(event, Started):
            os.kill(process_of("d"), signal.SIGKILL)

    with pytest.raises(StudentLost, match="the process of d died"):
        local.launch(run, on_event, threading.Event())
    start = latest(run.folder, print)
    assert start is not None
    assert start.step == 2


def test_of_a_run_that_trains_one_leaves_and_one_joins(
    make_recipe: MakeRecipe, inject: Inject, tmp_path: Path
) -> None:
    """By command, while `a` keeps its process; the run equals one whose recipe said so from the start.

    One whose network cannot be built changes nothing, but for the place of `c` in the recipe.
    """
    student, events = tmp_path / "c.yaml", list[Event]()
    student.write_text("{name: c, model: mlp, optimizer: {lr: 0.02}, schedule: {name: cosine}}")
    inject("coordinator", "gather", 4, "hold", until="changes")
    folder = str(tmp_path / "runs/r")

    def on_event(event: Event) -> None:
        events.append(event)
        if isinstance(event, CheckpointSaved) and event.step == 3:
            ask(Folder(folder), {"add": {"name": "x", "model": "mlp", "weights": "none.pt"}})
            for command in (["add", str(student)], ["remove", "b"]):
                told = CliRunner().invoke(kdcl, ["cohort", folder, *command])
                assert told.exit_code == 0, told.output

    recipe = make_recipe(
        "epochs=4",
        "distillation.method=general",
        "data.holdout_per_class=3",
        "students.b.schedule={name: cosine}",
        "limits.step_s=150",
    )
    found = training.train(
        recipe, launcher="local", storage=str(tmp_path / "runs"), name="r", on_event=on_event
    )
    assert found.finished
    assert set(found.metrics) == {"a", "b", "c", "ensemble"}
    stored, run_folder = load_run(folder)
    assert stored.cohort(1) == [0, 1]
    assert stored.cohort(2) == [0, 2]
    check(Run(stored, "r", run_folder, None, "."))
    assert [entry["students"] for entry in read_record(run_folder)["cohort"]] == [["a", "b"], ["a", "c"]]
    assert [len(pids(events, name)) for name in "abc"] == [1, 1, 1]
    assert [epochs_of(Run(stored, "r", run_folder, None, "."), name, 3) for name in "abc"] == [
        {0, 1, 2, 3},
        {0, 1},
        {2, 3},
    ]
    lines = [event.text for event in events if isinstance(event, Note | Warned)]
    assert [line.partition(":")[0] for line in lines if " join" in line] == [
        "x does not join",
        "c joins after epoch 2",
        "c joins at step 6",
    ]


@pytest.mark.parametrize("case", ["mean, in windows", "naive, coordinators"])
def test_one_leaves_at_once_whatever_the_coordinator_keeps(
    case: str, make_recipe: MakeRecipe, make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bank of logits and assistants take over the recipe in the middle of an epoch."""
    three = "students=[{name: a, model: mlp}, {name: b, model: mlp}, {name: c, model: cnn_small}]"
    run, asked = make_run(make_recipe(three, "epochs=3", *CASES[case]), "r"), itertools.count()
    is_due = LiveChange.is_due

    def look_and_see(change: LiveChange, epoch: int) -> bool:
        change.look()
        return is_due(change, epoch)

    def stop() -> bool:
        if next(asked) == 1:
            ask(run.folder, {"remove": "b"})
        return False

    monkeypatch.setattr(loop, "POLL_S", 0.0)
    monkeypatch.setattr(LiveChange, "is_due", look_and_see)
    cohort = Cohort(run).train(stop)
    assert not cohort.errors
    stored, run_folder = load_run(run.folder.uri)
    assert [each.until_epoch for each in stored.students] == [None, 1, None]
    check(Run(stored, "r", run_folder, None, "."))
    per_epoch = 8 if "batch_size=7" in CASES[case] else 3
    assert len(losses(run, "a")) == 3 * per_epoch, "no figure of a step is lost"
    assert epochs_of(run, "b", per_epoch) == {0}


def pids(events: list[Event], name: str) -> list[int]:
    """The processes of a worker, by the starts of generations."""
    starts = [event.placement for event in events if isinstance(event, Started)]
    return list(dict.fromkeys(int(placement[name]["pid"]) for placement in starts if name in placement))


def process_of(name: str) -> int:
    """A student's process, which a server that this process has started has forked."""

    def parent(pid: int) -> int:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])

    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            named = (entry / "comm").read_text() == f"kdcl:{name}\n"
            if named and os.getpid() in (parent(int(entry.name)), parent(parent(int(entry.name)))):
                return int(entry.name)
    raise AssertionError(f"{name} has no process")


def await_end(pid: int) -> bool:
    """Whether a process ends; a machine may be slow."""
    deadline = time.monotonic() + 100
    while not is_over(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    return is_over(pid)

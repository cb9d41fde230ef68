"""Validation passes, each student's best epoch, and early stopping: as the sequential reference has them."""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import reference
import torch
from cohorts import Cohort, Inject, MakeRecipe, assert_same, weights, write_images
from commands import assert_one_line
from commands import run as command

from kdcl_dist import models
from kdcl_dist.coordinator.metrics_collector import MetricsCollector
from kdcl_dist.evaluation import evaluate
from kdcl_dist.export.source import Source
from kdcl_dist.launch import local
from kdcl_dist.run import checkpoint
from kdcl_dist.run.events import EpochEnded, Note
from kdcl_dist.run.metrics import read_metrics
from kdcl_dist.run.record import read_record, scores_of
from kdcl_dist.run.run import Run
from kdcl_dist.run.validation import best_of, read_validation

MakeRun = Callable[..., Run]
#: Four epochs of two steps, of which each has a pass; the students are best in different epochs.
BEST = [
    "data.val_fraction=0.4",
    "epochs=5",
    "checkpoint={best: top1, keep: 1}",
    "students.a.optimizer.lr=0.5",
]


def check_best(run: Run) -> list[int]:
    """Compare the weights that are kept and all figures with the reference; each student's best epoch."""
    recipe, averages, passes = run.recipe, {}, []
    expected = reference.train(recipe, averages, passes)
    last = passes[-1]
    per_epoch = checkpoint.steps(run.folder)[-1] // (last.epoch + 1)
    found, kept = [], {last.epoch}
    for index, student in enumerate(recipe.students):
        name, best = student.name, reference.best(passes, recipe.checkpoint.best, index)
        assert_same(weights(run.folder, per_epoch * (last.epoch + 1), name), expected[index])
        states = {"": (last, expected[index]), "/best": (best, best.weights[index])}
        if student.ema is not None:
            states |= {"/ema": (last, averages[name]), "/ema/best": (best, best.averages[index])}
        for ending, (test, state) in states.items():
            entry = ("ema",) if "/ema" in ending else ()
            assert_same(weights(run.folder, per_epoch * (test.epoch + 1), name, *entry), state)
            check_figures(run, index, name + ending, test.epoch, state)
        found.append(best.epoch)
        kept.add(best.epoch)
    assert checkpoint.steps(run.folder)[-len(kept) :] == [per_epoch * (epoch + 1) for epoch in sorted(kept)]
    return found


def check_figures(run: Run, index: int, row: str, epoch: int, state: dict[str, torch.Tensor]) -> None:
    """The test figures of a row of the results are those of some weights."""
    network = models.build(run.recipe.students[index].model, 4, 1)
    network.load_state_dict(state)
    top1, loss = reference.score_of(run.recipe, network, reference.ArrowDataset(run.recipe.data.test))
    values = scores_of(read_record(run.folder))[row]
    assert (values["top1"], values["epoch"]) == (top1, epoch + 1)
    assert values["loss"] == pytest.approx(loss, rel=1e-6)


def test_stopped_and_resumed_it_equals_the_reference(make_recipe: MakeRecipe, make_run: MakeRun) -> None:
    recipe, asked = make_recipe(*BEST), itertools.count()
    stopped = Cohort(make_run(recipe, "r")).train(stop=lambda: next(asked) + 1 >= 4)
    assert not stopped.errors
    assert stopped.finished["coordinator"] is False
    run = make_run(recipe, "r", resume=True)
    assert not Cohort(run).train().errors
    assert check_best(run) == [2, 3], "the students' best epochs differ, and are not the last"


def test_after_a_death_it_equals_the_reference(
    make_recipe: MakeRecipe, make_run: MakeRun, inject: Inject, tmp_path: Path, data: dict[str, str]
) -> None:
    """With a validation set of its own, averaged weights, and a death in the test of the best weights."""
    more = [f"data.val={write_images(tmp_path / 'val.arrow', 20, seed=3)}", "checkpoint.best=loss"]
    more.append("students.a.ema={decay: 0.5, warmup: false}")
    recipe = make_recipe(*more, "epochs=4", "failure.max_failures=2", "students.a.optimizer.lr=0.5")
    run = make_run(recipe)
    # Each test has two batches and two passes, and the last epoch a test of each kind.
    met = [inject("b", "forward", 7, "kill"), inject("a", "evaluation", 12, "kill", nth=11)]
    assert local.launch(run, lambda event: None, threading.Event())
    assert all(each.exists() for each in met)
    check_best(run)


def test_every_epoch_has_its_training_metrics(make_recipe: MakeRecipe, make_run: MakeRun) -> None:
    recipe = make_recipe("epochs=5", "checkpoint.every_epochs=2")
    dense, sparse = (
        Cohort(make_run(each)).train()
        for each in (recipe, make_recipe("epochs=5", "checkpoint.every_epochs=2", "evaluate.every_epochs=3"))
    )
    assert not dense.errors | sparse.errors
    drop = ["data_s", "forward_s", "wait_s", "exchange_s", "backward_s", "step_s", "load_s", "ensemble_s"]
    tables = []
    for cohort in (dense, sparse):
        table = read_metrics(cohort.run.folder).to_pandas()
        tables.append(table[~table.name.isin(drop) & (table.split != "test")].reset_index(drop=True))
    assert tables[0].equals(tables[1])
    tested = read_metrics(sparse.run.folder).to_pandas()
    assert sorted(set(tested[tested.split == "test"].epoch)) == [2, 4]
    ended = [event for event in sparse.events if isinstance(event, EpochEnded)]
    assert [(event.epoch, bool(event.test)) for event in ended] == [
        (0, False),
        (1, False),
        (2, True),
        (3, False),
        (4, True),
    ]
    assert all(event.train["a"]["loss"] > 0 for event in ended)


STOPS = [*BEST, "epochs=30", "early_stopping={patience: 3}", "evaluate.every_epochs=2"]


def test_early_stopping_is_exact_over_a_break(make_recipe: MakeRecipe, make_run: MakeRun) -> None:
    recipe, asked = make_recipe(*STOPS), itertools.count()
    stopped = Cohort(make_run(recipe, "r")).train(stop=lambda: next(asked) + 1 >= 18)
    assert stopped.finished["coordinator"] is False
    run = make_run(recipe, "r", resume=True)
    cohort = Cohort(run).train()
    assert not cohort.errors
    assert set(cohort.finished.values()) == {True}
    check_best(run)
    record = read_record(run.folder)
    assert record["state"] == "finished"
    assert "no student's top1" in record["stopped_early"]
    assert [event for event in cohort.events if event == Note(record["stopped_early"])]
    # Once finished it stays so, unless its patience grows.
    assert read_record(make_run(recipe, "r", resume=True).folder)["state"] == "finished"
    longer = make_run(make_recipe(*STOPS, "early_stopping.patience=4"), "r", resume=True)
    assert read_record(longer.folder)["state"] == "starting"
    assert not Cohort(longer).train().errors
    check_best(longer)


def test_the_end_by_early_stopping_is_that_of_its_cohort_after_a_break_too(
    make_recipe: MakeRecipe, make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run ends where one would leave and one join, and breaks off in the test of the best weights."""
    slow = "optimizer: {lr: 1.0e-9}"  # no test is better than the first
    a, b = (f"{{name: {name}, model: mlp, {slow}" for name in "ab")
    students = f"students=[{a}}}, {b}, until_epoch: 2}}, {{name: c, model: mlp, from_epoch: 3}}]"
    more = ["epochs=4", "checkpoint.best=top1", "early_stopping={patience: 1}", "data.val_fraction=0.4"]
    recipe = make_recipe(students, *more)
    with monkeypatch.context() as patch:
        patch.setattr(MetricsCollector, "end_best", lambda *_: 1 / 0)
        assert Cohort(make_run(recipe, "r")).train().errors
    run = make_run(recipe, "r", resume=True)
    assert not Cohort(run).train().errors
    record = read_record(run.folder)
    results = scores_of(record)
    assert set(results) == {"a", "b", "ensemble", "a/best", "b/best", "ensemble/best"}
    assert results["ensemble/best"]["loss"] == pytest.approx(results["ensemble"]["loss"], rel=1e-4)
    assert [entry["students"] for entry in record["cohort"]] == [["a", "b"]]
    # With more patience it goes on, with the cohort of the next epoch.
    longer = make_run(make_recipe(students, *more, "early_stopping=null"), "r", resume=True)
    assert not Cohort(longer).train().errors
    assert [entry["students"] for entry in read_record(run.folder)["cohort"]] == [["a", "b"], ["a", "c"]]


def test_a_student_of_its_best_epoch(make_recipe: MakeRecipe, make_run: MakeRun) -> None:
    """Exports and evaluations of the best epoch, and of one by its number."""
    recipe, passes = make_recipe(*BEST), []
    run = make_run(recipe, "r")
    assert not Cohort(run).train().errors
    reference.train(recipe, passes=passes)
    uri = run.folder.uri
    for index, name in enumerate(recipe.names):
        best = reference.best(passes, "top1", index)
        source = Source.load(uri, name, epoch="best", warn=print)
        assert_same(source.network.state_dict(), best.weights[index])
        assert source.when == f"epoch {best.epoch + 1} of 5"
        assert set(source.results) == {name}
    together = Source.load(uri, "ensemble", epoch="best", warn=print)
    assert together.when == "a: epoch 3 of 5, b: epoch 4 of 5"
    assert set(together.results) == {"ensemble"}
    found = evaluate(uri, device="cpu", warn=print, epoch="best")
    recorded = scores_of(read_record(run.folder))
    assert found.epochs == {name: recorded[f"{name}/best"]["epoch"] for name in recipe.names}
    for name, values in found.results.items():
        assert values["top1"] == recorded[f"{name}/best"]["top1"]
        assert values["loss"] == pytest.approx(recorded[f"{name}/best"]["loss"], rel=1e-6)
    shown = command("evaluate", uri, "--device", "cpu", "--epoch", "best").output
    assert all(f"\u2502     {epoch} \u2502" in shown for epoch in found.epochs.values()), shown
    as_json = command("evaluate", uri, "--device", "cpu", "--epoch", "best", "--json")
    assert json.loads(as_json.output)["epochs"] == found.epochs
    assert command("evaluate", uri, "--epoch", "best", "--noise", "0.1").exit_code == 2
    number = found.epochs["a"]
    by_number = evaluate(uri, device="cpu", warn=print, epoch=number)
    assert (by_number.step, by_number.results["a"]) == (2 * number, found.results["a"])
    assert_one_line(command("evaluate", uri, "--epoch", "1"), "--epoch 1", "has no checkpoint of epoch 1")


def test_under_continue_the_best_is_what_was_saved(
    make_recipe: MakeRecipe, make_run: MakeRun, inject: Inject, tmp_path: Path
) -> None:
    """A student dies after a pass, before its weights are saved; the other, with replicas, waits for it."""
    val = write_images(tmp_path / "val.arrow", 22, seed=3)
    inject("b", "checkpoint", 6, "kill")
    more = [f"data.val={val}", "checkpoint={best: loss, keep: 1}", "students.a.replicas=2", "epochs=4"]
    more += ["failure={policy: continue, max_failures: 3, min_students: 2}"]
    run = make_run(make_recipe(*more))
    assert local.launch(run, lambda event: None, threading.Event())
    (absence,) = read_record(run.folder)["absences"]
    assert absence == {"student": "b", "since": 6, "until": 6, "state_of": 3}
    newest = checkpoint.latest(run.folder, print)
    assert newest is not None
    passes = read_validation(run.folder, newest).tests
    assert [(each["step"], each["saved"]) for each in passes] == [
        (3, ["a", "b"]),
        (6, ["a"]),
        (9, ["a", "b"]),
        (12, ["a", "b"]),
    ]
    for index, name in enumerate(run.recipe.names):
        found = best_of(run.folder, newest, name, "loss")
        assert found is not None
        best, manifest = found
        assert manifest.parts[name].step is None, "no older weights than the epoch's"
        network = models.build(run.recipe.students[index].model, 4, 1)
        network.load_state_dict(weights(run.folder, best.step, name))
        _, loss = reference.score_of(run.recipe, network, reference.ArrowDataset(str(val)))
        assert best.value == pytest.approx(loss, rel=1e-5)
    recorded = scores_of(read_record(run.folder))
    for name, values in evaluate(run.folder.uri, device="cpu", warn=print, epoch="best").results.items():
        assert values["loss"] == pytest.approx(recorded[f"{name}/best"]["loss"], rel=1e-5)

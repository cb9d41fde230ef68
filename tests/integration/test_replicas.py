"""A student of several workers learns what one with the whole batch learns."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from cohorts import Cohort, MakeRecipe, assert_same, weights
from equality import PAIR, check_replicas, single

from kdcl_dist.errors import SilentCorruption, StudentLost
from kdcl_dist.launch import local
from kdcl_dist.run.metrics import read_metrics
from kdcl_dist.run.record import read_record
from kdcl_dist.run.run import Run

MakeRun = Callable[..., Run]


OWN = "{name: 'examples.custom.right:loss', peers: true}"


@pytest.mark.parametrize("method", ["none", "naive", "linear", "min_logit", "general", "mean", "dml", OWN])
def test_unequal_replicas_give_the_result_of_whole_batches(
    method: str, make_recipe: MakeRecipe, make_run: MakeRun
) -> None:
    holdout = ["data.holdout_per_class=3"] if method == "general" else []
    verify = "failure.verify_every_steps=2"  # which changes nothing
    run = make_run(make_recipe(PAIR, f"distillation.method={method}", *holdout, verify))
    cohort = Cohort(run).train()
    assert not cohort.errors
    assert cohort.finished.keys() == {"coordinator", "a/0", "a/1", "b"}
    check_replicas(run, atol=1e-6)
    assert read_record(run.folder)["placement"].keys() == {"a/0", "a/1", "b"}


@pytest.mark.parametrize(
    "fields",
    [
        ["students.a.optimizer.lr=0.05"],
        ["students.a.optimizer.lr=0.02", "students.a.data={share: 0.3, sees: all}"],
    ],
    ids=["all samples", "own samples"],
)
def test_replicas_pause_together(fields: list[str], make_recipe: MakeRecipe, make_run: MakeRun) -> None:
    """A larger learning rate would let rounding change a decision. Of own samples a replica may have none."""
    method = "distillation={method: switokd, temperature: 0.1}"
    run = make_run(make_recipe(PAIR, method, "batch_size=8", *fields))
    assert not Cohort(run).train().errors
    rows = [row for row in read_metrics(run.folder).to_pylist() if row["name"] == "paused"]
    for name in ("a", "b"):
        assert {row["value"] for row in rows if row["student"] == name} == {0.0, 1.0}
    check_replicas(run, atol=1e-6, step=rows[-1]["step"] + 1)


def test_batch_norm_over_all_replicas(make_recipe: MakeRecipe, make_run: MakeRun) -> None:
    cohort = (
        "students=[{name: a, model: cnn_small, replicas: 2, sync_batchnorm: true}, {name: b, model: mlp}]"
    )
    run = make_run(make_recipe(cohort))
    assert not Cohort(run).train().errors
    check_replicas(run, atol=2e-5)


def test_batch_norm_of_each_replica_differs(make_recipe: MakeRecipe, make_run: MakeRun) -> None:
    """Without sync_batchnorm statistics are of half a batch: the test above can fail."""
    run = make_run(make_recipe("students=[{name: a, model: cnn_small, replicas: 2}, {name: b, model: mlp}]"))
    assert not Cohort(run).train().errors
    with pytest.raises(AssertionError):
        check_replicas(run, atol=2e-3)


def test_figures_are_of_the_whole_student(make_recipe: MakeRecipe, make_run: MakeRun) -> None:
    recipe = make_recipe(PAIR, "analysis.every_steps=2")
    runs = [make_run(recipe), make_run(single(recipe))]
    tables = []
    for run in runs:
        assert not Cohort(run).train().errors
        rows = [row for row in read_metrics(run.folder).to_pylist() if not row["name"].endswith("_s")]
        tables.append({(r["student"], r["step"], r["split"], r["name"]): r["value"] for r in rows})
    assert tables[0].keys() == tables[1].keys()
    for key, value in tables[0].items():
        assert value == pytest.approx(tables[1][key], abs=1e-4), key


def test_processes_stopped_and_resumed(make_recipe: MakeRecipe, make_run: MakeRun) -> None:
    recipe = make_recipe(PAIR)
    whole = make_run(recipe)
    assert local.launch(whole, lambda event: None, threading.Event())
    steps = iter(range(100))
    broken = make_run(recipe, "broken")
    assert not Cohort(broken).train(stop=lambda: next(steps) == 3).finished["coordinator"]
    again = make_run(recipe, "broken", resume=True)
    assert again.step == 4
    assert local.launch(again, lambda event: None, threading.Event())
    for name in recipe.names:
        assert_same(weights(again.folder, 6, name), weights(whole.folder, 6, name))


def test_a_replica_that_dies_is_named(make_recipe: MakeRecipe, make_run: MakeRun) -> None:
    run = make_run(make_recipe(PAIR, "students.a.model=nets:KilledInOne"))
    with pytest.raises(StudentLost) as caught:
        local.launch(run, lambda event: None, threading.Event())
    assert caught.value.student == "a/1"
    assert "SIGKILL" in str(caught.value)


def test_a_replica_whose_numbers_change_is_named(
    tmp_path: Path, make_recipe: MakeRecipe, make_run: MakeRun
) -> None:
    """The other replica has the same gradient, and is right."""
    flips = f"{{name: 'nets:Flips', once: {tmp_path / 'flipped'}, where: kdcl-a/1}}"
    run = make_run(make_recipe(PAIR, f"students.a.model={flips}", "failure.verify_every_steps=5"))
    with pytest.raises(SilentCorruption, match=r"student 'a/1', step 4, .* logits, sent logits") as caught:
        local.launch(run, lambda event: None, threading.Event())
    assert caught.value.student == "a/1"

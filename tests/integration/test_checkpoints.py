"""Whole runs that stop and resume: bit for bit those that never stopped."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from cohorts import Cohort, MakeRecipe, assert_same, weights, write_images

from kdcl_dist.errors import RunFolderError
from kdcl_dist.run import checkpoint
from kdcl_dist.run.metrics import read_metrics
from kdcl_dist.run.record import read_record
from kdcl_dist.run.run import Run

MakeRun = Callable[..., Run]


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("method", ["linear", "general"])
def test_stopped_and_resumed_equals_never_stopped(
    steps: int, method: str, make_recipe: MakeRecipe, make_run: MakeRun
) -> None:
    recipe = make_recipe(
        f"distillation.method={method}", "data.holdout_per_class=3", "checkpoint.keep=9", "batch_size=12"
    )
    whole = Cohort(make_run(recipe)).train()
    assert not whole.errors
    asked = iter(range(10**6))
    # The coordinator asks once a round at which the run may stop.
    stopped = Cohort(make_run(recipe, "r")).train(stop=lambda: next(asked) + 1 >= steps)
    assert not stopped.errors
    assert set(stopped.finished.values()) == {False}
    assert read_record(stopped.run.folder)["state"] == "interrupted"
    resumed = Cohort(make_run(recipe, "r", resume=True)).train()
    assert not resumed.errors
    assert set(resumed.finished.values()) == {True}
    for name in recipe.names:
        assert_same(weights(whole.run.folder, 8, name), weights(resumed.run.folder, 8, name))
    assert_same_metrics(whole.run, resumed.run)


def assert_same_metrics(one: Run, other: Run) -> None:
    """Results and metrics, without the measured times."""
    assert read_record(one.folder)["results"] == read_record(other.folder)["results"]
    drop = ["data_s", "forward_s", "wait_s", "exchange_s", "backward_s", "step_s", "load_s", "ensemble_s"]
    tables = [read_metrics(run.folder).to_pandas() for run in (one, other)]
    keys = ["student", "epoch", "step", "split", "name"]
    left, right = (t[~t.name.isin(drop)].sort_values(keys).reset_index(drop=True) for t in tables)
    assert left.equals(right)


@pytest.mark.parametrize("overrides", [(), ("distillation.method=general", "data.holdout_per_class=2")])
def test_a_finished_run_that_goes_on_equals_a_longer_one(
    make_recipe: MakeRecipe, make_run: MakeRun, overrides: Sequence[str]
) -> None:
    more = ("students.b.schedule={milestones: [2]}", "checkpoint.every_epochs=2", *overrides)
    short, long = make_recipe(*more, "epochs=1"), make_recipe(*more, "epochs=3")
    whole = Cohort(make_run(long, "whole")).train()
    first = Cohort(make_run(short, "r")).train()
    assert read_record(first.run.folder)["state"] == "finished"
    resumed = Cohort(make_run(long, "r", resume=True)).train()
    assert not whole.errors | first.errors | resumed.errors
    step = checkpoint.steps(whole.run.folder)[-1]
    for name in ("a", "b"):
        assert_same(weights(whole.run.folder, step, name), weights(resumed.run.folder, step, name))
    assert_same_metrics(whole.run, resumed.run)
    assert read_record(resumed.run.folder)["state"] == "finished"


def test_a_resumed_run_must_be_the_same(make_recipe: MakeRecipe, make_run: MakeRun, tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="nothing to resume"):
        make_run(make_recipe(), "r", resume=True)
    run = Cohort(make_run(make_recipe(), "r")).train().run
    with pytest.raises(RunFolderError, match=r"seed: 0 -> 1"):
        make_run(make_recipe("seed=1"), "r", resume=True)
    with pytest.raises(RunFolderError, match=r"students\.1\.name"):
        make_run(make_recipe("students.b.name=other"), "r", resume=True)
    with pytest.raises(RunFolderError, match="exists"):
        make_run(make_recipe(), "r")
    make_run(make_recipe("limits.step_s=9"), "r", resume=True)
    manifest = json.loads(run.folder.read("checkpoints/step-00000006/manifest.json"))
    assert manifest["parts"].keys() == {"a", "b", "coordinator"}


def test_other_data_is_refused_on_resume(
    make_recipe: MakeRecipe, make_run: MakeRun, data: dict[str, str], tmp_path: Path
) -> None:
    path = tmp_path / "own.arrow"
    write_images(path, 60, seed=1)
    recipe = make_recipe(f"data.train={path}", "epochs=3")
    asked = iter(range(10**6))
    Cohort(make_run(recipe, "r")).train(stop=lambda: next(asked) >= 3)
    write_images(path, 60, seed=9)
    cohort = Cohort(make_run(recipe, "r", resume=True)).train()
    assert all(isinstance(error, RunFolderError) for error in cohort.errors.values())
    assert "other data" in str(cohort.errors["coordinator"])


def test_two_runs_are_identical_and_another_seed_is_not(make_recipe: MakeRecipe, make_run: MakeRun) -> None:
    one, two, other = (Cohort(make_run(make_recipe(f"seed={seed}"))).train().run for seed in (0, 0, 1))
    for name in ("a", "b"):
        assert_same(weights(one.folder, 3, name), weights(two.folder, 3, name))
    differing = weights(other.folder, 3, "b")
    assert not torch.equal(weights(one.folder, 3, "b")["layers.2.weight"], differing["layers.2.weight"])


def test_a_part_loads_into_the_plain_network(make_recipe: MakeRecipe, make_run: MakeRun) -> None:
    from kdcl_dist import models

    run = Cohort(make_run(make_recipe())).train().run
    network = models.build("cnn_small", 4, 1)
    network.load_state_dict(weights(run.folder, 6, "a"), strict=True)

"""Trackers as a recipe names them: what is missing is told before anything is spent."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trackers
from cohorts import ROOT, MakeRecipe
from commands import assert_one_line, fences, run, train

from kdcl_dist.config.recipe_file import dump_recipe
from kdcl_dist.errors import RecipeError
from kdcl_dist.run.metrics import MetricsTable
from kdcl_dist.run.run import Run
from kdcl_dist.tracking import tracking
from kdcl_dist.tracking.csv_file import CsvFile
from kdcl_dist.tracking.mlflow_run import MLflowRun
from kdcl_dist.tracking.secrets import without_environment
from kdcl_dist.tracking.tracker import Point, TrackedRun
from kdcl_dist.tracking.tracking import catch_up, check_trackers
from kdcl_dist.tracking.weights_and_biases import WandbRun


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
@pytest.mark.parametrize("item", ["{}", "{{name: {}, every_steps: 10}}"])
def test_a_missing_package_is_one_line(
    name: str, item: str, make_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "find_spec", lambda package: None)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(dump_recipe(make_recipe(f"tracking=[csv, {item.format(name)}]", "data.train=nowhere")))
    line = f"tracking.1: {name} is not installed: pip install 'kdcl_dist[{name}]'"
    assert_one_line(train(str(recipe), tmp_path, "--name", "r"), line)
    assert_one_line(run("preflight", str(recipe), "--launcher", "local"), line)
    assert not (tmp_path / "runs").exists()


def test_a_folder_of_its_name_is_no_package(
    make_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "only_a_folder" / "latest-run").mkdir(parents=True)
    monkeypatch.syspath_prepend(str(tmp_path))
    found = importlib.util.find_spec("only_a_folder")
    assert found is not None
    monkeypatch.setattr(tracking, "find_spec", lambda package: found)
    with pytest.raises(RecipeError, match="wandb is not installed"):
        check_trackers(make_recipe("tracking=[wandb]"))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nowhere_at_all:T", "importing 'nowhere_at_all' failed"),
        ("trackers:Nothing", "'trackers' has no attribute 'Nothing'"),
        ("trackers:NUMBER", "is a int, no class or function"),
        ("trackers:Incomplete", "it lacks the method 'finish'"),
    ],
)
def test_an_import_string_of_no_tracker_is_one_line(name: str, words: str, make_recipe: MakeRecipe) -> None:
    for item in (f"'{name}'", f"{{name: '{name}', x: 3}}"):
        with pytest.raises(RecipeError) as found:
            check_trackers(make_recipe(f"tracking=[{item}]"))
        assert str(found.value).startswith(f"tracking.0: '{name}'")
        assert words in str(found.value)


def test_each_name_makes_its_tracker(make_recipe: MakeRecipe) -> None:
    items = (
        "csv, wandb, {name: mlflow, uri: 'http://h:1'}, 'trackers:Notes', {name: 'trackers:Fails', x: [1]}"
    )
    recipe = make_recipe(f"tracking=[{items}]")
    check_trackers(recipe)
    made: list[Any] = [tracking._make(spec) for spec in recipe.tracking]
    assert [type(each) for each in made] == [CsvFile, WandbRun, MLflowRun, trackers.Notes, trackers.Fails]
    assert made[1].spec.project is None
    assert made[2].spec.uri == "http://h:1"
    assert made[3].arguments == {}
    assert made[4].arguments == {"x": [1]}


def test_a_tracker_is_told_the_recipe(make_recipe: MakeRecipe, make_run: Callable[..., Run]) -> None:
    recipe = make_recipe("students.a.optimizer.lr=0.25", "data.augment=[{name: Resize, size: 8}]")
    told = TrackedRun.of(make_run(recipe, "mine"))
    assert (told.name, told.group, told.id) == ("mine", "tiny", None)
    assert told.recipe == dump_recipe(recipe)
    assert told.hparams["students.a.optimizer.lr"] == 0.25
    assert told.hparams["data.augment.Resize.size"] == 8
    assert told.hparams["epochs"] == 2
    assert all(
        isinstance(value, (str, int, float, list, dict, type(None))) for value in told.hparams.values()
    )


def test_the_tracker_of_the_document(
    tmp_path: Path, make_recipe: MakeRecipe, make_run: Callable[..., Run]
) -> None:
    code = next(block for block in fences((ROOT / "docs/tracking.md").read_text()) if "class Lines" in block)
    exec(code, found := {})  # type: ignore[var-annotated]
    tracker = found["Lines"](tmp_path / "lines.txt")
    tracker.start(TrackedRun.of(make_run(make_recipe())))
    tracker.log([Point("a", 1, 3, "train", "loss", 0.5, 0.0), Point("b", 1, 3, "test", "top1", 1.0, 0.0)])
    tracker.finish("finished")
    assert (tmp_path / "lines.txt").read_text() == "3 train/loss/a 0.5\n3 test/top1/b 1.0\n"


def test_a_finished_run_is_caught_up_with_once(make_recipe: MakeRecipe, make_run: Callable[..., Run]) -> None:
    run, events = make_run(make_recipe("tracking=[tensorboard, csv]")), []  # type: ignore[var-annotated]
    table = MetricsTable(run.folder)
    for epoch in range(2):
        table.add("a", epoch, epoch + 1, "test", {"top1": 0.5})
        table.end_epoch(epoch)
    table.flush(1)
    for _ in range(2):
        catch_up(run, events.append)
        assert run.folder.read("metrics.csv") == b"epoch,step,student,test/top1\n1,1,a,0.5\n2,2,a,0.5\n"
    written = run.folder.time("tracking/csv.json")
    catch_up(run, events.append)
    assert run.folder.time("tracking/csv.json") == written
    assert events == []


def test_no_text_shows_a_secret_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "0123456789abcdef-and-more")
    monkeypatch.setenv("SHORT_TOKEN", "a")
    text = "at http://me:p@ss/w@h:1/x with 0123456789abcdef-and-more, 0123456789abcdef and a path a@b"
    assert without_environment(text) == "at http://***@h:1/x with ***, *** and a path a@b"

"""Whole runs by the command line: their folder, exit codes, warnings and failures.

On Ray: on_ray/test_cli_ray.py.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from cohorts import MakeRecipe
from commands import assert_one_line, check_dry_run, run, train

from kdcl_dist import models
from kdcl_dist.config.recipe_file import dump_recipe, load_recipe
from kdcl_dist.run import data_wait
from kdcl_dist.run.metrics import SCHEMA, read_metrics
from kdcl_dist.run.record import read_record
from kdcl_dist.run.storage import Folder


@pytest.fixture
def recipe(make_recipe: MakeRecipe, tmp_path: Path) -> str:
    path = tmp_path / "recipe.yaml"
    path.write_text(dump_recipe(make_recipe()))
    return str(path)


def test_a_whole_run(recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = train(recipe, tmp_path, "--name", "one", "--set", "students.a.optimizer.lr=0.05")
    assert result.exit_code == 0, result.output
    assert " epoch epoch=2/2 " in result.output
    folder = Folder(str(tmp_path / "runs" / "one"))
    assert load_recipe(tmp_path / "runs/one/recipe.yaml").students[0].optimizer.lr == 0.05
    assert "# torch " in (tmp_path / "runs/one/recipe.yaml").read_text()
    record = read_record(folder)
    assert record["state"] == "finished"
    assert record["placement"].keys() == {"a", "b"}
    assert record["placement"]["a"]["cores"] == len(os.sched_getaffinity(0))
    assert record["versions"].keys() >= {"kdcl_dist", "torch", "python"}
    check_metrics(folder, record["results"])
    check_tensorboard(tmp_path / "runs" / "one" / "tensorboard")

    evaluated = run("evaluate", str(tmp_path / "runs" / "one"))
    assert evaluated.exit_code == 0
    for name in ("a", "b", "ensemble"):
        assert f"{100 * record['results'][name]['top1']:.2f}" in evaluated.output
        assert f"{record['results'][name]['loss']:.4f}" in evaluated.output

    monkeypatch.setattr(data_wait, "WORTH", -1.0)  # any wait is worth a line
    for more, told in (((), True), (("--set", "students.a.optimizer.lr=0.05"), False)):
        again = train(recipe, tmp_path, "--name", "one", "--resume", *more)
        assert again.exit_code == 0
        assert "finished already" in again.output
        assert "waiting for data: a " in again.output
        assert ("as the run began: students.0.optimizer.lr" in again.output) == told
    refused = train(recipe, tmp_path, "--name", "one", "--resume", "--set", "epochs=1")
    assert_one_line(refused, "differs in epochs: 2 -> 1")


def check_metrics(folder: Folder, results: dict) -> None:
    table = read_metrics(folder)
    assert table.schema.equals(SCHEMA)
    frame = table.to_pandas()
    train = frame[(frame.split == "train") & (frame.student == "a")]
    values = {name: rows.value.to_numpy() for name, rows in train.groupby("name")}
    assert values.keys() >= {
        "loss",
        "task_loss",
        "distillation_loss",
        "lr",
        "top1",
        "top5",
        "data_s",
        "forward_s",
        "load_s",
    }
    assert values.keys() >= {"wait_s", "exchange_s", "backward_s", "step_s"}
    assert all(len(rows) == 6 for rows in values.values())
    assert np.allclose(values["loss"], values["task_loss"] + values["distillation_loss"], rtol=1e-5)
    parts = sum(values[name] for name in ("data_s", "forward_s", "wait_s", "exchange_s", "backward_s"))
    assert np.allclose(parts, values["step_s"], atol=1e-3)
    test = frame[(frame.split == "test") & (frame.epoch == 1)]
    for _, row in test.iterrows():
        assert results[row.student][row["name"]] == row.value


def check_tensorboard(folder: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for name in ("a", "b", "ensemble"):
        events = EventAccumulator(str(folder / name))
        events.Reload()
        assert "test/top1" in events.Tags()["scalars"]
        assert [event.step for event in events.Scalars("test/top1")] == [3, 6]


def test_precision_and_workers_run_through(recipe: str, tmp_path: Path) -> None:
    more = [
        "students.a.precision=bf16",
        "students.b.precision=fp16",
        "data.loader_workers=1",
        "deterministic=true",
    ]
    settings = [part for item in more for part in ("--set", item)]
    result = train(recipe, tmp_path, *settings, "--name", "r")
    assert result.exit_code == 0, result.output
    assert yaml.safe_load((tmp_path / "runs/r/recipe.yaml").read_text())["students"][0]["precision"] == "bf16"


def test_a_failed_run_exits_with_1_and_its_cause(recipe: str, tmp_path: Path) -> None:
    result = train(recipe, tmp_path, "--name", "r", "--set", "students.b.model=nets:Raises")
    assert result.exit_code == 1
    named = "StudentFailed: student 'b', step 3, phase forward, host 127.0.0.1"
    assert f"{named}: ArithmeticError: a user's mistake" in result.output
    cause = read_record(Folder(str(tmp_path / "runs" / "r")))["cause"]
    assert (cause["student"], cause["step"], cause["error"]) == ("b", 3, "StudentFailed")


def test_the_log_of_a_student_has_the_last_words_of_each_process(
    recipe: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    more = ("--set", "students.b.model=nets:LastWords", "--set", "failure.max_failures=1")
    result = train(recipe, tmp_path, "--name", "r", *more)
    assert result.exit_code == 1
    logs, words = tmp_path / "runs/r/logs", "terminate called after throwing an instance"
    text = (logs / "b.log").read_text()
    starts = [line for line in text.splitlines() if line.endswith(" starts ====")]
    assert len(set(starts)) == 2
    assert text.count(f"step 3\n{words}\nkilled by SIGABRT\n") == 2
    assert capfd.readouterr().err.count(words) == 2  # as without a log
    assert "see logs/b.log in the run folder" in result.output.splitlines()[-1]
    assert f"the last lines of {logs}/b.log:\n" in result.output
    assert f"\n{words}\nkilled by SIGABRT\n" in result.output
    told = (logs / "launcher.log").read_text()
    assert "a new one takes its place" in told
    assert " end state=failed " in told.splitlines()[-1]
    assert (logs / "coordinator.log").exists()


def test_a_run_can_be_evaluated_from_anywhere_and_without_its_first_weights(
    make_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: dict[str, str]
) -> None:
    first = tmp_path / "first.pt"
    torch.save(models.build("cnn_small", 4, 1).state_dict(), first)
    for part in ("train", "test"):
        (tmp_path / f"{part}.arrow").write_bytes(Path(data[part]).read_bytes())
    monkeypatch.chdir(tmp_path)
    made = make_recipe(
        "data.train=train.arrow", "data.test=test.arrow", "epochs=1", f"students.a.weights={first}"
    )
    (tmp_path / "recipe.yaml").write_text(dump_recipe(made))
    assert train("recipe.yaml", tmp_path, "--name", "one").exit_code == 0
    first.unlink()
    monkeypatch.chdir("/")
    assert run("evaluate", str(tmp_path / "runs" / "one")).exit_code == 0


def test_warnings_about_what_is_hardly_meant(recipe: str, tmp_path: Path) -> None:
    more = [
        "--set",
        "students.0={name: a, model: mlp, seed: 1}",
        "--set",
        "students.1={name: b, model: mlp, seed: 1}",
    ]
    more += ["--set", "students.0.accelerator=T4", "--set", "distillation.window=500"]
    result = train(recipe, tmp_path, *more, "--set", "epochs=1")
    assert result.exit_code == 0, result.output
    assert "start identical" in result.output
    assert "students.a.accelerator: 'T4' is not looked for by launcher 'local'" in result.output
    assert "distillation.window: an epoch has 3 steps, so 500 is as much as 'epoch'" in result.output


def test_a_dry_run_leaves_nothing(recipe: str, tmp_path: Path) -> None:
    check_dry_run(recipe, tmp_path, "local")


def test_a_dry_run_that_fails_leaves_nothing(recipe: str, tmp_path: Path) -> None:
    for more, code in (("nets:LastWords", 0), ("nets:WrongClasses", 2)):
        wanted = ("--set", f"students.b.model={more}", "--dry-run", "1")
        result = train(recipe, tmp_path, *wanted)
        assert result.exit_code == code, result.output
        assert not (tmp_path / "runs").exists()
    refused = train(recipe, tmp_path, "--dry-run", "1", "--name", "r")
    assert refused.exit_code == 2
    assert "takes no --name" in refused.output

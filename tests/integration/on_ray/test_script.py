"""A script of a user that trains on either launcher, and the commands with its run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from cohorts import ROOT, SUPPORT

from kdcl_dist.cli import kdcl


def run_script(launcher: str, runs: Path, name: str, **more: str) -> tuple[dict[str, Any], str]:
    """What the script says of its run, and its output; `more` are variables of its environment."""
    script = SUPPORT / "python_script.py"
    answer = subprocess.run(
        [sys.executable, str(script), launcher, str(runs), name],
        env={**os.environ, "PYTHONPATH": f"{SUPPORT / 'inject'}{os.pathsep}{ROOT}", **more},
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
    )
    assert answer.returncode == 0, answer.stderr
    found: dict[str, Any] = json.loads((runs / f"{name}.json").read_text())
    assert not answer.stdout
    return found, answer.stderr


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def trained(runs: Path) -> tuple[dict[str, Any], str]:
    """The run of the script, in which a student is killed."""
    return run_script("local", runs, "first")


def test_a_script_without_a_guard_trains_once(trained: tuple[dict[str, Any], str], runs: Path) -> None:
    found, output = trained
    assert (runs / "starts").read_text() == "once\n"
    assert (runs / "died").exists()
    assert sorted(path.name for path in runs.iterdir() if path.is_dir()) == ["first"]
    assert output.count("\n") == 1
    assert output.startswith(f"{runs}/first: finished; test top-1 % small ")
    assert found["state"] == "finished"
    assert found["predicted"] == [0, 1, 2]
    assert found["evaluated"]["large"]["loss"] == pytest.approx(found["results"]["large"]["loss"], rel=1e-5)
    assert "model: object:given" in found["recipe"]
    record = json.loads((runs / "first" / "run.json").read_text())
    assert [each["student"] for each in record["failures"]["causes"]] == ["small"]


def test_without_the_death_and_on_ray_it_ends_with_the_same_weights(
    trained: tuple[dict[str, Any], str], cluster: str, tmp_path: Path
) -> None:
    (tmp_path / "died").touch()  # no student dies again
    found, _ = run_script("ray", tmp_path, "second", RAY_ADDRESS=cluster)
    assert (tmp_path / "starts").read_text() == "once\n"
    assert found["weights"] == trained[0]["weights"]
    assert found["results"] == trained[0]["results"]


@pytest.mark.usefixtures("trained")
def test_commands_say_that_objects_are_passed_in_python(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(runs)
    resume = ["--resume", "--storage", str(runs), "--name", "first", "--launcher", "local"]
    for arguments in (
        ["evaluate", "first"],
        ["export", "first", "--student", "small"],
        ["train", "first/recipe.yaml", *resume],
        ["train", "first/recipe.yaml", "--launcher", "local", "--name", "third"],
    ):
        answer = CliRunner().invoke(kdcl, arguments)
        assert answer.exit_code == 2, arguments
        lines = answer.stderr.strip().splitlines()
        assert len(lines) == 1, arguments
        assert "pass it in Python again, as in kdcl_dist.Run(path, students=..., data=...)" in lines[0]
    assert not (runs / "third").exists()

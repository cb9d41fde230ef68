"""Whole runs on Ray by the command line; more of the command line is in test_cli_runs.py."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from cohorts import MakeRecipe
from commands import check_dry_run, train
from ray._private import state

from kdcl_dist.config.recipe_file import dump_recipe
from kdcl_dist.run.record import read_record
from kdcl_dist.run.storage import Folder


@pytest.fixture
def recipe(make_recipe: MakeRecipe, tmp_path: Path) -> str:
    path = tmp_path / "recipe.yaml"
    path.write_text(dump_recipe(make_recipe()))
    return str(path)


def test_a_ray_of_another_program_is_left_alone(recipe: str, tmp_path: Path) -> None:
    """Of this one. It would end with that program, and what is too much for it would wait for ever."""
    command = [sys.executable, "-m", "kdcl_dist", "preflight", recipe, "--storage", str(tmp_path)]
    drivers = len(state.jobs())
    # Where no cluster of `ray start` is noted: those of other tests pass for such. Sockets need short names.
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp") as folder:
        own = os.environ | {"RAY_TMPDIR": folder}
        done = subprocess.run(command, env=own, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(state.jobs()) == drivers


def test_a_dry_run_on_ray_leaves_nothing(recipe: str, tmp_path: Path) -> None:
    check_dry_run(recipe, tmp_path, "ray")


def test_a_mistake_found_in_a_ray_worker(recipe: str, tmp_path: Path) -> None:
    result = train(recipe, tmp_path, "--set", "students.a.model=nets:WrongClasses", launcher="ray")
    assert result.exit_code == 2, result.output
    assert "4 classes" in result.output
    assert "Traceback" not in result.output


def test_a_killed_ray_worker_is_named(recipe: str, tmp_path: Path) -> None:
    result = train(recipe, tmp_path, "--set", "students.b.model=nets:Killed", "--name", "r", launcher="ray")
    assert result.exit_code == 1, result.output
    assert "student 'b'" in result.output
    assert read_record(Folder(str(tmp_path / "runs" / "r")))["cause"]["student"] == "b"

"""No process imports what it does not use: real processes, asked at their end.

Those of a run on Ray are in test_ray_metrics.py, whose run they share.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from cohorts import ROOT, recipe_text
from imported import COMPILER, NEVER, NOTES, never, noted

#: Takes more than half a second to import, each.
HEAVY = NEVER | COMPILER | {"torch", "ray", "pandas", "pyarrow", "numpy", "tensorboardX"}


def loaded(code: str) -> set[str]:
    """Top-level packages that a process has imported after it ran some code."""
    ask = "\nimport sys\nprint('\\n' + ' '.join(sys.modules))"
    answer = subprocess.run(
        [sys.executable, "-c", code + ask], cwd=ROOT, capture_output=True, text=True, check=True, timeout=280
    )
    return {name.partition(".")[0] for name in answer.stdout.splitlines()[-1].split()}


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--help"], 0),
        (["train", "--help"], 0),
        (["--version"], 0),
        (["recipe", "schema"], 0),
        (["recipe", "reference"], 0),
        (["models"], 0),
        (["train", "no-such-file.yaml"], 2),
        (["train", "examples/digits.yaml", "--set", "epochs=-1"], 2),
        (["preflight", "no-such-file.yaml"], 2),
        (["train", "examples/digits.yaml", "--launcher", "nowhere"], 2),
    ],
    ids=str,
)
def test_help_and_mistakes_wait_for_nothing(arguments: list[str], code: int) -> None:
    found = loaded(
        f"from kdcl_dist.cli import kdcl\ntry:\n    kdcl.main({arguments})\n"
        f"except SystemExit as end:\n    assert end.code == {code}, end.code"
    )
    assert "click" in found
    assert found & HEAVY == set()


@pytest.mark.parametrize(
    ("code", "without"),
    [
        ("import kdcl_dist", HEAVY),
        ("import kdcl_dist; kdcl_dist.load_recipe('examples/digits.yaml')", HEAVY),
        (
            "import kdcl_dist.student.runtime, kdcl_dist.coordinator.runtime",
            NEVER | COMPILER | {"ray", "pandas", "tensorboardX"},
        ),
        ("import kdcl_dist.launch.ray.coordinator", NEVER | COMPILER | {"torch", "pandas", "tensorboardX"}),
        ("import kdcl_dist.launch.forkserver", HEAVY),
        (
            "from kdcl_dist.run.metrics import MetricsTable; from kdcl_dist.run.storage import Folder; "
            "table = MetricsTable(Folder('run')); table.load_state_dict(table.state_dict())",
            {"pandas"},
        ),
        ("import kdcl_dist.launch.ray.worker", NEVER | COMPILER | {"torch", "tensorboardX"}),
    ],
)
def test_modules_import_what_they_use(code: str, without: set[str]) -> None:
    assert loaded(code) & without == set()


def test_a_server_that_has_imported_the_compiler_leaves_coordinators_nothing_to_import() -> None:
    loaded(
        "import sys, kdcl_dist.coordinator.runtime, kdcl_dist.distillation.machine_code\n"
        "before = {*sys.modules}\n"
        "from kdcl_dist.distillation.solving import prepare_solver\n"
        "prepare_solver()\n"
        "assert {*sys.modules} == before, {*sys.modules} - before"
    )


def test_the_processes_of_a_run_on_this_machine(data: dict[str, str], tmp_path: Path) -> None:
    found = trained(data, tmp_path)
    for name in ("a", "b", "coordinator"):
        assert "torch" in found[name]
        assert found[name] & (never(name) | {"ray", "pandas"}) == set(), name
    assert "tensorboardX" in found["coordinator"]
    assert "tensorboardX" not in found["a"] | found["b"]


def trained(data: dict[str, str], folder: Path) -> dict[str, set[str]]:
    """Train a small cohort in a process of its own; the modules of each member's process."""
    recipe, notes = folder / "recipe.yaml", folder / "notes"
    recipe.write_text(recipe_text(data))
    notes.mkdir()
    code = (
        f"from kdcl_dist import load_recipe, train; train(load_recipe({str(recipe)!r}, ['epochs=1']), "
        f"launcher='local', storage={str(folder / 'runs')!r})"
    )
    path = os.pathsep.join([str(NOTES), str(ROOT)])
    subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": path, "KDCL_TEST_IMPORTS": str(notes)},
        check=True,
        timeout=280,
    )
    return noted(notes)

"""`benchmarks.gpu` on the CPU, without Ray: what a machine with a GPU runs does not fail on first contact."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cohorts import ROOT

from benchmarks.gpu import PARTS

ABSENT = ("ray", "tensorboardX")


def measured(tmp_path: Path, *arguments: str) -> dict[str, Any]:
    """The JSON of `--device cpu --quick`, in processes that cannot import what is absent."""
    for name in ABSENT:
        (tmp_path / f"{name}.py").write_text(f"raise ModuleNotFoundError('{name}', name='{name}')\n")
    command = [sys.executable, "-m", "benchmarks.gpu", "--device", "cpu", "--quick", "--minutes", "25"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    subprocess.run(
        [*command, "--out", str(tmp_path / "gpu.md"), *arguments],
        cwd=ROOT,
        env=environment,
        check=True,
        timeout=1600,
    )
    found: dict[str, Any] = json.loads((tmp_path / "gpu.json").read_text())["parts"]
    return found


def test_a_run_equals_sequential_training_and_needs_no_ray(tmp_path: Path) -> None:
    (row,) = measured(tmp_path, "--only", "equality")["equality"]["rows"]
    assert {row["a second run"], row["in one process"], row["plain loop"]} == {"equal"}


@pytest.mark.slow
def test_every_part_gives_its_rows(tmp_path: Path) -> None:
    found = measured(tmp_path)
    assert list(found) == list(PARTS)
    assert [name for name, part in found.items() if part["failed"] or not part["rows"]] == []

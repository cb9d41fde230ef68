"""Trained weights are those of version 0.1.0, bit for bit, and a run folder of that version still works."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from cohorts import ROOT

from kdcl_dist.cli import kdcl
from kdcl_dist.run.record import read_record
from kdcl_dist.run.storage import Folder

pytestmark = pytest.mark.timeout(600)

GOLDEN = ROOT / "tests" / "golden"
WEIGHTS = json.loads((GOLDEN / "weights.json").read_text())


@dataclass
class Trained:
    """What train.py printed, and its copy of the old run folder."""

    found: dict[str, Any]
    run_folder: Path


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """All cases, trained in one process."""
    folder = tmp_path_factory.mktemp("golden") / "run-0.1.0"
    command = [sys.executable, str(GOLDEN / "train.py"), "--run-folder", str(folder)]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True, timeout=580)
    return Trained(json.loads(done.stdout), folder)


@pytest.fixture
def same_kernels(trained: Trained) -> None:
    """Skip where the hashes say nothing about kdcl_dist."""
    if release(trained.found["torch"]) != release(WEIGHTS["torch"]):
        pytest.skip(f"PyTorch is {torch.__version__}, the weights are of {WEIGHTS['torch']}")
    if trained.found["canary"] != WEIGHTS["canary"]:
        pytest.skip("this machine's kernels give other weights without kdcl_dist too")


def release(version: str) -> str:
    """A version without its build: the canary tells whether the build differs."""
    return version.partition("+")[0]


@pytest.mark.parametrize("case", WEIGHTS["cases"])
def test_the_weights_are_the_same(case: str, trained: Trained, same_kernels: None) -> None:
    assert trained.found["cases"][case] == WEIGHTS["cases"][case]


def test_an_old_run_resumes_to_the_same_weights(trained: Trained, same_kernels: None) -> None:
    assert trained.found["interrupted"] == WEIGHTS["interrupted"]


def test_an_old_run_resumes_to_its_end(trained: Trained) -> None:
    record = read_record(Folder(str(trained.run_folder)))
    assert record["state"] == "finished"
    assert record["results"].keys() == {"small", "mlp", "ensemble"}


@pytest.mark.parametrize(
    "arguments", [["evaluate"], ["report", "--out"], ["export", "--student", "mlp", "--last", "--to"]]
)
def test_commands_take_an_old_run(arguments: list[str], trained: Trained, tmp_path: Path) -> None:
    command, *options = arguments
    made = tmp_path / "made"
    target = [str(made)] if options else []
    result = CliRunner().invoke(kdcl, [command, str(trained.run_folder), *options, *target])
    assert result.exit_code == 0, result.output
    assert made.exists() is bool(options)

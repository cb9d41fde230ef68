"""A soak ends with the weights of a run without faults; of a build with a defect it says so."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from cohorts import ROOT

#: The draw of this seed has a kill of a replica, of the coordinator and of a student.
SOAK = ("--faults", "3", "--seed", "3")


def soak(folder: Path, *arguments: str, broken: str | None = None) -> subprocess.CompletedProcess[str]:
    more = {} if broken is None else {"KDCL_TEST_BROKEN": broken}
    command = [sys.executable, "-m", "benchmarks.soak", str(folder), *SOAK, *arguments]
    return subprocess.run(
        command, cwd=ROOT, env=os.environ | more, capture_output=True, text=True, check=False, timeout=900
    )


@pytest.mark.slow
def test_a_soak_ends_as_the_run_without_faults(tmp_path: Path) -> None:
    done = soak(tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "of which 3 were met" in done.stdout
    assert "equal, bit for bit" in done.stdout


@pytest.mark.slow
def test_a_soak_under_continue_compares_the_accuracies(tmp_path: Path) -> None:
    done = soak(tmp_path, "--policy", "continue")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "| ensemble | " in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("broken", ["skipped_step", "lost_part", "old_message"])
def test_a_soak_finds_a_defect_of_recovery(broken: str, tmp_path: Path) -> None:
    done = soak(tmp_path, broken=broken)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "differ" in done.stdout

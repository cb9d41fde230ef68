"""A run whose cohort changes at random while it trains ends as the replay of its record."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from cohorts import ROOT


@pytest.mark.slow
def test_random_changes_end_as_their_replay(tmp_path: Path) -> None:
    """The draw of this seed has joins, one of them while a process dies, a leave and a kill."""
    command = [sys.executable, "-m", "benchmarks.joins", str(tmp_path), "--changes", "5", "--seed", "4"]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ, capture_output=True, text=True, check=False, timeout=900
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "those of the replay, bit for bit" in done.stdout
    for kind in ("join", "leave", "kill"):
        assert f"\n| {kind} | " in done.stdout

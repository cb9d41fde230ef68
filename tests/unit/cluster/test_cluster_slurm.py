"""The Slurm batch file, with Slurm, Ray and kdcl played: what is started where, and what a signal does."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from cohorts import ROOT

SCRIPT = ROOT / "cluster" / "slurm" / "kdcl.sbatch"
#: Writes down how it was called; `srun` and a `kdcl` that is to be stopped then wait for a signal. A `kdcl`
#: goes on when both `srun`, which run beside it, have written.
PLAYED = """#!/bin/bash
echo "$(basename "$0") $*" >> "$CALLS"
[[ $(basename "$0") == srun ]] && exec sleep 60
[[ $(basename "$0") != kdcl ]] && exit 0
echo "RAY_ADDRESS=$RAY_ADDRESS token=$(stat -c %a "$RAY_AUTH_TOKEN_PATH")" >> "$CALLS"
for _ in {1..1000}; do [[ $(grep -c ^srun "$CALLS") == 2 ]] && break; sleep 0.1; done
[[ -n $STOPPED ]] || exit "$CODE"
trap 'exit 130' TERM
echo ready >> "$CALLS"
while true; do sleep 0.1; done
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tools = tmp_path / ".venv" / "bin"
    tools.mkdir(parents=True)
    for name in ("srun", "ray", "kdcl", "scontrol"):
        (tools / name).write_text(PLAYED)
        (tools / name).chmod(0o755)
    return tmp_path


#: What Slurm says of the cores: of each part of the job, or of the first one only.
OF_PARTS = {"SLURM_CPUS_PER_TASK_HET_GROUP_0": "8", "SLURM_CPUS_PER_TASK_HET_GROUP_1": "4"}
OF_ONE = {"SLURM_CPUS_PER_TASK": "8"}


def start(
    folder: Path, *, stopped: bool = False, code: int = 0, cores: dict[str, str] = OF_PARTS
) -> subprocess.Popen[str]:
    variables = {
        "PATH": os.environ["PATH"],
        "HOME": str(folder),
        "HEAD": "10.0.0.1",
        "SLURM_JOB_ID": "12345",
        **cores,
        "CALLS": str(folder / "calls"),
        "STOPPED": "1" if stopped else "",
        "CODE": str(code),
    }
    return subprocess.Popen(["bash", str(SCRIPT)], cwd=folder, env=variables, text=True)


def calls(folder: Path) -> list[str]:
    path = folder / "calls"
    return path.read_text().splitlines() if path.exists() else []


def one(folder: Path, beginning: str) -> str:
    (found,) = (call for call in calls(folder) if call.startswith(beginning))
    return found


@pytest.mark.parametrize(
    ("code", "cores", "taken"), [(0, OF_PARTS, "84"), (1, OF_PARTS, "84"), (0, OF_ONE, "88")]
)
def test_a_run(folder: Path, code: int, cores: dict[str, str], taken: str) -> None:
    process = start(folder, code=code, cores=cores)
    assert process.wait(120) == code
    assert "--include-dashboard=false" in one(
        folder, "ray start --head --node-ip-address=10.0.0.1 --port=22345"
    )
    for part, label in enumerate(("A100", "T4")):
        options = f"--het-group={part} --cpus-per-task={taken[part]}"
        call = one(folder, f"srun {options} ray start --address=10.0.0.1:22345")
        assert f"--num-cpus={taken[part]} " in call
        assert f"--labels=ray.io/accelerator-type={label}" in call
    assert "--resume" not in one(folder, "kdcl train examples/digits.yaml")
    assert one(folder, "RAY_ADDRESS") == "RAY_ADDRESS=10.0.0.1:22345 token=600"
    assert not [call for call in calls(folder) if call.startswith("scontrol")]
    assert not list(folder.glob(".kdcl-token-*"))


def test_a_signal_takes_a_checkpoint_and_queues_the_job_again(folder: Path) -> None:
    process = start(folder, stopped=True)
    deadline = time.monotonic() + 60
    while "ready" not in calls(folder):
        assert time.monotonic() < deadline, calls(folder)
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(120) == 130
    assert one(folder, "scontrol") == "scontrol requeue 12345"
    assert not list(folder.glob(".kdcl-token-*"))

    (folder / "calls").unlink()
    (folder / "runs" / "slurm-12345" / "checkpoints").mkdir(parents=True)
    assert start(folder).wait(120) == 0
    assert "--resume" in one(folder, "kdcl train examples/digits.yaml")

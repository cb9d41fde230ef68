"""Seconds from a fault to its report, and to the next generation of the cohort, for one fault after another.

    python -m benchmarks.faults --out docs/results/faults.md

The faults are those of the tests (`tests/support/inject`): one process has one fault in one phase of a step.
Three students of `examples/digits.yaml`, local launcher.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import threading
import time
from pathlib import Path

import torch

from kdcl_dist.config.recipe_file import load_recipe
from kdcl_dist.launch import local
from kdcl_dist.run.events import Event, Note, Started
from kdcl_dist.run.prepare import prepare

RECIPE, STEP, STEP_S = "examples/digits.yaml", 40, 5
CASES = [
    *(("small", phase, "kill") for phase in ("data", "forward", "gather", "broadcast", "backward")),
    *(("small", phase, "kill") for phase in ("evaluation", "checkpoint")),
    ("small", "forward", "exception"),
    ("small", "forward", "stop"),
    ("small", "data", "block"),
    ("small", "gather", "cut"),
    ("small", "gather", "cut off"),
    *(("coordinator", phase, "kill") for phase in ("gather", "ensemble", "broadcast", "record")),
    ("coordinator", "checkpoint", "kill"),
    ("coordinator", "ensemble", "exception"),
    ("coordinator", "ensemble", "stop"),
    ("coordinator", "ensemble", "block"),
    ("coordinator", "gather", "block"),
    ("coordinator", "gather", "cut"),
    ("coordinator", "gather", "cut off"),
]
HOW = {
    "kill": "kill -9",
    "exception": "exception",
    "stop": "stopped",
    "block": "blocks",
    "cut": "connections reset",
    "cut off": "those of the store too",
}
#: Steps of the phases at the end of an epoch.
STEPS = {"evaluation": 44, "checkpoint": 44}


def measure(policy: str, who: str, phase: str, how: str) -> tuple[float, float]:
    """Seconds from the fault to the report of the failure, and to the start of the next generation."""
    with tempfile.TemporaryDirectory() as folder:
        once, faults = Path(folder) / "once", Path(os.environ["KDCL_TEST_FAULTS"])
        fault = {"who": who, "phase": phase, "step": STEPS.get(phase, STEP), "how": how, "nth": 1}
        faults.write_text(json.dumps(fault | {"once": str(once), "after": "", "until": ""}))
        recipe = load_recipe(RECIPE, ["epochs=3", f"failure.policy={policy}", f"limits.step_s={STEP_S}"])
        events: list[tuple[float, Event]] = []
        run = prepare(recipe, folder, "run", resume=False, warn=print)
        assert local.launch(run, lambda event: events.append((time.time(), event)), threading.Event())
        began = once.stat().st_mtime
    reported = next(t for t, e in events if isinstance(e, Note) and "failure.max_failures" in e.text)
    return reported - began, next(t for t, e in events if isinstance(e, Started) and t > began) - began


def main() -> None:
    """Measure all faults and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    lines = [
        "# From a fault to its report, and to the next generation of the cohort",
        "",
        "Seconds from the fault to the report of the failure, and to the next generation of the exchange "
        f"group; the first step follows soon. `{RECIPE}`, three students, one try "
        f"each, `limits.step_s: {STEP_S}`, local launcher, {os.cpu_count()} cores, PyTorch "
        f"{torch.__version__}, Python {platform.python_version()}. Made by "
        f"`python -m benchmarks.faults {' '.join(sys.argv[1:])}`.",
        "",
        "| process | phase | fault | rollback: reported | continues | continue: reported | continues |",
        "| --- | --- | --- | ---: | ---: | ---: | ---: |",
    ]
    with tempfile.TemporaryDirectory() as folder:
        os.environ["KDCL_TEST_FAULTS"] = f"{folder}/faults.jsonl"
        os.environ["PYTHONPATH"] = os.pathsep.join(
            [str(Path("tests/support/inject").absolute()), str(Path.cwd())]
        )
        for case in CASES:
            figures = [f"{s:.2f}" for policy in ("rollback", "continue") for s in measure(policy, *case)]
            lines.append(f"| {case[0]} | {case[1]} | {HOW[case[2]]} | {' | '.join(figures)} |")
            print(lines[-1], flush=True)
    if given.out is not None:
        given.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()

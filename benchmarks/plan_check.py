"""Accuracy of `kdcl plan`: its prediction and a real run, for cohorts of unequal students.

    python -m benchmarks.plan_check --out docs/results/plan-check.md

Each round makes a prediction and, directly after it, a run with the local launcher. The table shows medians
over the rounds and their range. The step of a run is the median over its steps of the slowest student's
step_s. The idle share of a student is the median share of a step that it waits or exchanges; that of a run is
the mean over its students.
"""

from __future__ import annotations

import argparse
import os
import platform
import tempfile
from collections import defaultdict
from pathlib import Path
from statistics import mean, median

import torch

from benchmarks.step_efficiency import RECIPE
from kdcl_dist.config.recipe import Recipe
from kdcl_dist.config.recipe_file import load_recipe
from kdcl_dist.planning.survey import survey
from kdcl_dist.run.metrics import ENSEMBLE, read_metrics
from kdcl_dist.run.storage import Folder
from kdcl_dist.training import train

#: One core for each worker; the first cohort has as many workers as most small machines have cores.
COHORTS = {
    "large + medium": ["students=[{name: one, model: cnn_large}, {name: two, model: cnn_medium}]"],
    "2 x large, small": [
        "students=[{name: one, model: cnn_large, replicas: 2}, {name: two, model: cnn_small}]"
    ],
    "medium, small, mlp": [],
}
WARMUP_STEPS = 5

#: Seconds of a step, and the mean idle share of the students.
Step = tuple[float, float]


def predict(recipe: Recipe) -> Step:
    """The planner's prediction."""
    found = survey(recipe, len(recipe.workers), {}, cores=None, on_progress=lambda text: None)
    best = found.model.predict([student.replicas for student in recipe.students])
    return best.step_s, mean(best.idle)


def measure(recipe: Recipe) -> Step:
    """The step and the idle share of a run."""
    with tempfile.TemporaryDirectory() as storage:
        rows = read_metrics(Folder(train(recipe, launcher="local", storage=storage).path)).to_pylist()
    steps: dict[tuple[str, int], dict[str, float]] = defaultdict(dict)
    for row in rows:
        if row["split"] == "train" and row["student"] != ENSEMBLE and row["step"] >= WARMUP_STEPS:
            steps[row["student"], row["step"]][row["name"]] = row["value"]
    slowest: dict[int, float] = defaultdict(float)
    idle: dict[str, list[float]] = defaultdict(list)
    for (student, step), values in steps.items():
        slowest[step] = max(slowest[step], values["step_s"])
        idle[student].append((values["wait_s"] + values["exchange_s"]) / values["step_s"])
    return median(slowest.values()), mean(median(shares) for shares in idle.values())


def row(name: str, rounds: list[tuple[Step, Step]]) -> str:
    """One line of the table. Each round has its own error, which lessens the effect of changing load."""
    errors = [first[0] / last[0] - 1 for first, last in rounds]
    cells = [_range([1000 * pair[side][0] for pair in rounds], ".1f") for side in (0, 1)]
    cells.append(_range(errors, "+.0%"))
    cells += [f"{median(pair[side][1] for pair in rounds):.0%}" for side in (0, 1)]
    return f"| {name} | {' | '.join(cells)} |"


def _range(values: list[float], form: str) -> str:
    return f"{median(values):{form}} ({min(values):{form}} .. {max(values):{form}})"


def main() -> None:
    """Compare all cohorts, print the table, and write it to --out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    lines = [
        f"{os.cpu_count()} cores ({platform.machine()}), no GPU, PyTorch {torch.__version__}; digits,",
        f"batch of 64, {arguments.rounds} rounds of {arguments.epochs} epochs, local launcher, one thread",
        f"for each worker. Load average of the machine at the beginning: {os.getloadavg()[0]:.1f}.",
        "Made by `python -m benchmarks.plan_check`.",
        "",
        "| cohort | predicted ms | measured ms | error of a round | predicted idle | measured idle |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, overrides in COHORTS.items():
        recipe = load_recipe(RECIPE, [*overrides, f"epochs={arguments.epochs}", "checkpoint.every_epochs=99"])
        rounds = [(predict(recipe), measure(recipe)) for _ in range(arguments.rounds)]
        lines.append(row(name, rounds))
        print(lines[-1], flush=True)
    table = "\n".join(lines) + "\n"
    print(table)
    if arguments.out:
        arguments.out.write_text(table)


if __name__ == "__main__":
    main()

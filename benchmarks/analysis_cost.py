"""What the analysis costs a step: measured steps against the others of the same run.

    python -m benchmarks.analysis_cost --out docs/results/analysis-cost.md

Every tenth step is measured, so that there are enough of both kinds; the cost at another interval is the
extra time of a measured step spread over it.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path
from statistics import median

import torch

from benchmarks.figures import Figure
from benchmarks.step_efficiency import CASTS, recipe_of, seconds_by_step
from kdcl_dist.config.recipe import Recipe
from kdcl_dist.config.sections import Analysis
from kdcl_dist.training import train

EVERY = 10
WARMUP_STEPS = 5


def measure(recipe: Recipe) -> tuple[float, float]:
    """Median seconds of a step of the cohort: of those that are measured, and of the others."""
    recipe = recipe.model_copy(update={"analysis": Analysis(every_steps=EVERY)})
    with tempfile.TemporaryDirectory() as storage:
        by_step = seconds_by_step(train(recipe, launcher="local", storage=storage).path)
    kinds: dict[bool, list[float]] = {True: [], False: []}
    for step, seconds in by_step.items():
        # The coordinator measures while the students learn, so the step after may feel it too.
        if step >= WARMUP_STEPS:
            kinds[step % EVERY in (0, 1)].append(seconds)
    return median(kinds[True]), median(kinds[False])


def cost_of(measured: float, others: float) -> float:
    """The extra time of a measured step and the one after it, as a share of the default interval's time."""
    return 2 * (measured - others) / (Analysis().every_steps * others)


def figures(quick: bool = False) -> list[Figure]:
    """The step with analysis over the step without, at the default interval."""
    cohort = "20 ms" if quick else "100 ms"
    cost = cost_of(*measure(recipe_of(cohort, 6 if quick else 12)))
    return [Figure("analysis", f"cohort of {cohort}, a step with it over one without", 1 + cost, 1.03)]


def main() -> None:
    """Measure all cohorts and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    every = Analysis().every_steps
    lines = [
        "# What the analysis costs",
        "",
        f"Median ms of a step, in one run a row, every {EVERY}th step measured; a measured step",
        f"and the one after it count as measured. The cost is their extra time in every {every} steps.",
        f"{os.cpu_count()} cores, PyTorch {torch.__version__}, digits, no augmentation, local launcher.",
        "Made by `python -m benchmarks.analysis_cost`.",
        "",
        "| students | batch | measured ms | others ms | cost |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for cohort in CASTS:
        recipe = recipe_of(cohort, arguments.epochs)
        measured, others = measure(recipe)
        names = " + ".join(student.model for student in recipe.students)
        cost = cost_of(measured, others)
        times = f"{1000 * measured:.1f} | {1000 * others:.1f}"
        lines.append(f"| {names} | {recipe.batch_size} | {times} | {cost:.1%} |")
        print(lines[-1], flush=True)
    if arguments.out:
        arguments.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()

"""Cost of the analysis: analysed steps against the other steps of the same run.

    python -m benchmarks.analysis_cost --out docs/results/analysis-cost.md

Every tenth step is analysed, which gives enough steps of both kinds. The cost at another interval is the
extra time of an analysed step, divided by that interval.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path
from statistics import median

import torch

from benchmarks.figures import Figure
from benchmarks.step_efficiency import COHORTS, recipe_of, seconds_by_step
from kdcl_dist.config.recipe import Recipe
from kdcl_dist.config.sections import Analysis
from kdcl_dist.training import train

EVERY = 10
WARMUP_STEPS = 5


def measure(recipe: Recipe) -> tuple[float, float]:
    """Median seconds of an analysed step of the cohort, and of another step."""
    recipe = recipe.model_copy(update={"analysis": Analysis(every_steps=EVERY)})
    with tempfile.TemporaryDirectory() as storage:
        by_step = seconds_by_step(train(recipe, launcher="local", storage=storage).path)
    kinds: dict[bool, list[float]] = {True: [], False: []}
    for step, seconds in by_step.items():
        # The coordinator analyses while the students learn, which can delay the next step.
        if step >= WARMUP_STEPS:
            kinds[step % EVERY in (0, 1)].append(seconds)
    return median(kinds[True]), median(kinds[False])


def cost_of(analysed: float, others: float) -> float:
    """The extra time of an analysed step and the next one, as a share of the default interval's time."""
    return 2 * (analysed - others) / (Analysis().every_steps * others)


def figures(quick: bool = False) -> list[Figure]:
    """A step with analysis divided by a step without, at the default interval."""
    cohort = "20 ms" if quick else "100 ms"
    cost = cost_of(*measure(recipe_of(cohort, 6 if quick else 12)))
    return [Figure("analysis", f"cohort of {cohort}, a step with analysis over one without", 1 + cost, 1.03)]


def main() -> None:
    """Measure all cohorts and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    every = Analysis().every_steps
    lines = [
        "# Cost of the analysis",
        "",
        f"Median ms of a step. Each row is one run in which every {EVERY}th step is analysed; an analysed",
        f"step and the next one count as analysed. The cost is their extra time in every {every} steps.",
        f"{os.cpu_count()} cores, PyTorch {torch.__version__}, digits, no augmentation, local launcher.",
        "Made by `python -m benchmarks.analysis_cost`.",
        "",
        "| students | batch | analysed ms | others ms | cost |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for cohort in COHORTS:
        recipe = recipe_of(cohort, arguments.epochs)
        analysed, others = measure(recipe)
        names = " + ".join(str(student.model) for student in recipe.students)
        cost = cost_of(analysed, others)
        times = f"{1000 * analysed:.1f} | {1000 * others:.1f}"
        lines.append(f"| {names} | {recipe.batch_size} | {times} | {cost:.1%} |")
        print(lines[-1], flush=True)
    if arguments.out:
        arguments.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()

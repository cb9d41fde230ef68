"""Methods on the digits: test accuracy over seeds, with paired intervals.

    python -m benchmarks.digits_methods --seeds 10 --out docs/results/digits-methods

Every arm holds out the same samples, though only `general` uses them: all arms train on equally many samples.
A seed changes the initial weights, the order, the views and the held-out part. The results are a CSV of all
runs and a Markdown table: mean top-1 % of each student, and its gain over `none` with the 95% interval of the
paired differences (Student's t).
"""

from __future__ import annotations

import argparse
import csv
import os
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch

from benchmarks.in_turn import InTurn
from benchmarks.intervals import difference
from kdcl_dist.config.recipe_file import load_recipe

METHODS = ("none", "naive", "linear", "min_logit", "general", "mean", "dml")
OVERRIDES = (
    "data.holdout_per_class=14",
    "data.augment=[{name: RandomCrop, size: 8, padding: 1}]",
    "epochs=20",
)


def run(job: tuple[str, int]) -> list[tuple[str, int, str, float, float]]:
    """Train one method with one seed; rows of (method, seed, student, top-1 %, loss)."""
    method, seed = job
    torch.set_num_threads(1)
    overrides = [*OVERRIDES, f"distillation.method={method}", f"seed={seed}"]
    results = InTurn(load_recipe("examples/digits.yaml", overrides)).train()
    return [(method, seed, name, 100 * r["top1"], r["loss"]) for name, r in results.items()]


def table(rows: list[tuple[str, int, str, float, float]]) -> str:
    """The results as Markdown."""
    students = list(dict.fromkeys(row[2] for row in rows))
    found: dict[tuple[str, str], dict[int, float]] = {}
    for method, seed, student, top1, _ in rows:
        found.setdefault((method, student), {})[seed] = top1
    lines = ["| method | " + " | ".join(students) + " |", "| --- |" + " ---: |" * len(students)]
    for method in METHODS:
        cells = [
            difference(found[method, student], None if method == "none" else found["none", student])
            for student in students
        ]
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Train all arms and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--out", type=Path, default=Path("docs/results/digits-methods"))
    arguments = parser.parse_args()
    jobs = [(method, seed) for seed in range(arguments.seeds) for method in METHODS]
    rows = []
    with ProcessPoolExecutor(arguments.processes, mp_context=get_context("spawn")) as pool:
        for done, result in enumerate(pool.map(run, jobs), 1):
            rows += result
            print(f"{done} of {len(jobs)}: {jobs[done - 1]}", flush=True)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    with arguments.out.with_suffix(".csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("method", "seed", "student", "top1_percent", "loss"))
        writer.writerows(rows)
    arguments.out.with_suffix(".md").write_text(table(rows))
    print(table(rows))


if __name__ == "__main__":
    main()

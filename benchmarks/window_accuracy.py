"""What windows are worth on the digits: test accuracy over seeds, with paired intervals.

    python -m benchmarks.window_accuracy --seeds 10 --out docs/results/window-accuracy

A seed changes the initial weights, the orders and the views. Runs that are in the CSV already are not
repeated. Writes a CSV of all runs and a Markdown table: mean top-1 % of each student and of the
ensemble, and the difference from window 1 with the 95% interval of the paired differences (Student's t).
"""

from __future__ import annotations

import argparse
import csv
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch

from benchmarks.digits_methods import interval
from benchmarks.in_turn import InTurn
from kdcl_dist.recipe_file import load_recipe

RECIPE = "examples/digits.yaml"
#: The two small networks, and views that are quickly made: a run takes seconds.
OVERRIDES = ("students.large=null", "data.augment=[{name: RandomCrop, size: 8, padding: 1}]")
BASE = "1"
#: An epoch of the digits has 22 steps of 64 samples.
ARMS = {
    "labels only": ["distillation.method=none"],
    BASE: [],
    "8": ["distillation.window=8"],
    "epoch": ["distillation.window=epoch"],
    "8, max_staleness 7": ["distillation.window=8", "distillation.max_staleness=7"],
    "epoch, max_staleness 21": ["distillation.window=epoch", "distillation.max_staleness=21"],
}

Row = tuple[str, int, str, float, float]


def run(job: tuple[str, int]) -> list[Row]:
    """Train one arm with one seed; rows of (arm, seed, student, top-1 %, loss)."""
    arm, seed = job
    torch.set_num_threads(1)
    results = InTurn(load_recipe(RECIPE, [*OVERRIDES, *ARMS[arm], f"seed={seed}"])).train()
    return [(arm, seed, name, 100 * r["top1"], r["loss"]) for name, r in results.items()]


def table(rows: list[Row]) -> str:
    """The results as Markdown."""
    students = list(dict.fromkeys(row[2] for row in rows))
    found: dict[tuple[str, str], dict[int, float]] = {}
    for arm, seed, student, top1, _ in rows:
        found.setdefault((arm, student), {})[seed] = top1
    lines = ["| window | " + " | ".join(students) + " |", "| --- |" + " ---: |" * len(students)]
    for arm in ARMS:
        cells = []
        for student in students:
            seeds = sorted(found[arm, student])
            own, base = (np.array([found[a, student][seed] for seed in seeds]) for a in (arm, BASE))
            mean, half = interval(own)
            gain, gain_half = interval(own - base)
            cells.append(
                f"{mean:.2f} ± {half:.2f}" + ("" if arm == BASE else f" ({gain:+.2f} ± {gain_half:.2f})")
            )
        lines.append(f"| {arm} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def read(path: Path) -> list[Row]:
    """The runs that were written before."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        lines = list(csv.reader(file))[1:]
    return [(arm, int(seed), student, float(top1), float(loss)) for arm, seed, student, top1, loss in lines]


def write(path: Path, rows: list[Row]) -> None:
    """All runs so far."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("window", "seed", "student", "top1_percent", "loss"))
        writer.writerows(rows)


def main() -> None:
    """Run all arms and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("docs/results/window-accuracy"))
    arguments = parser.parse_args()
    path = arguments.out.with_suffix(".csv")
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = read(path)
    seeds = range(arguments.first, arguments.first + arguments.seeds)
    done = {row[:2] for row in rows}
    jobs = [(arm, seed) for seed in seeds for arm in ARMS if (arm, seed) not in done]
    with ProcessPoolExecutor(arguments.processes, mp_context=get_context("spawn")) as pool:
        for count, result in enumerate(pool.map(run, jobs), 1):
            rows += result
            write(path, rows)
            print(f"{count} of {len(jobs)}: {jobs[count - 1]}", flush=True)
    arguments.out.with_suffix(".md").write_text(table(rows))
    print(table(rows))


if __name__ == "__main__":
    main()

"""Arms of the digits recipe: test accuracy over seeds, with paired intervals.

A seed changes the initial weights, the orders and the views. Runs of an existing CSV are not repeated. The
results are a CSV of all runs and a Markdown table: mean top-1 % of each student and of the ensemble, and the
difference from the base arm with the 95% interval of the paired differences (Student's t).
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import torch

from benchmarks.in_turn import InTurn
from benchmarks.intervals import difference
from kdcl_dist.config.recipe_file import load_recipe

__all__ = ["Study"]

RECIPE = "examples/digits.yaml"
#: The two small networks, and cheap views: a run takes seconds.
OVERRIDES = ("students.large=null", "data.augment=[{name: RandomCrop, size: 8, padding: 1}]")
Row = tuple[str, int, str, float, float]


@dataclass(frozen=True)
class Study:
    """A comparison of several arms.

    Attributes:
        title: title of the column of arms.
        arms: overrides of the recipe, by name of the arm.
        base: the arm with which the others are compared.
    """

    title: str
    arms: Mapping[str, Sequence[str]]
    base: str

    def table(self, rows: list[Row]) -> str:
        """The results as Markdown."""
        students = list(dict.fromkeys(row[2] for row in rows))
        found: dict[tuple[str, str], dict[int, float]] = {}
        for arm, seed, student, top1, _ in rows:
            found.setdefault((arm, student), {})[seed] = top1
        lines = [f"| {self.title} | " + " | ".join(students) + " |", "| --- |" + " ---: |" * len(students)]
        for arm in self.arms:
            cells = []
            for student in students:
                base = None if arm == self.base else found[self.base, student]
                cells.append(difference(found[arm, student], base))
            lines.append(f"| {arm} | " + " | ".join(cells) + " |")
        return "\n".join(lines) + "\n"

    def main(self, out: str) -> None:
        """Train all arms and write the results, by default to `out`."""
        parser = argparse.ArgumentParser()
        parser.add_argument("--first", type=int, default=0, help="first seed")
        parser.add_argument("--seeds", type=int, default=10)
        parser.add_argument("--processes", type=int, default=1)
        parser.add_argument("--out", type=Path, default=Path(out))
        arguments = parser.parse_args()
        path = arguments.out.with_suffix(".csv")
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = read(path)
        seeds = range(arguments.first, arguments.first + arguments.seeds)
        done = {row[:2] for row in rows}
        jobs = [(arm, seed) for seed in seeds for arm in self.arms if (arm, seed) not in done]
        overrides = [self.arms[arm] for arm, _ in jobs]
        with ProcessPoolExecutor(arguments.processes, mp_context=get_context("spawn")) as pool:
            for count, result in enumerate(pool.map(run, jobs, overrides), 1):
                rows += result
                write(path, self.title, rows)
                print(f"{count} of {len(jobs)}: {jobs[count - 1]}", flush=True)
        arguments.out.with_suffix(".md").write_text(self.table(rows))
        print(self.table(rows))


def run(job: tuple[str, int], overrides: Sequence[str]) -> list[Row]:
    """Train one arm with one seed; rows of (arm, seed, student, top-1 %, loss)."""
    arm, seed = job
    torch.set_num_threads(1)
    results = InTurn(load_recipe(RECIPE, [*OVERRIDES, *overrides, f"seed={seed}"])).train()
    return [(arm, seed, name, 100 * r["top1"], r["loss"]) for name, r in results.items()]


def read(path: Path) -> list[Row]:
    """The runs of an existing CSV."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        lines = list(csv.reader(file))[1:]
    return [(arm, int(seed), student, float(top1), float(loss)) for arm, seed, student, top1, loss in lines]


def write(path: Path, title: str, rows: list[Row]) -> None:
    """Write all runs so far."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow((title, "seed", "student", "top1_percent", "loss"))
        writer.writerows(rows)

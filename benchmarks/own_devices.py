"""Cost of a step where each student has a device of its own, so that the processor is nearly idle.

    python -m benchmarks.own_devices --out docs/results/own-devices.md

The networks only wait (`benchmarks/waiting.py`), a third in the forward pass. Each round measures

    (a) the network alone, in a plain loop over a batch that lies ready;
    (b) the cohort with kdcl, coordinator and exchange included.

A step lasts from the begin of a forward pass to that of the next. Its parts are what the run records. The
figures are medians over steps, then over students, then over rounds; compare ratios, not times.
"""

from __future__ import annotations

import argparse
import tempfile
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks.conditions import conditions
from benchmarks.figures import Figure
from benchmarks.waiting import Waiting, steps_of
from kdcl_dist.config.recipe import Recipe
from kdcl_dist.config.recipe_file import parse_recipe
from kdcl_dist.data.arrow_images import Info
from kdcl_dist.data.writer import write_batches
from kdcl_dist.run.metrics import read_metrics
from kdcl_dist.run.storage import Folder
from kdcl_dist.training import Launcher, train
from kdcl_dist.utils.process import keep_freed_memory

__all__ = ["WARMUP_STEPS", "Case", "figures", "images", "typical"]

WARMUP_STEPS = 10
#: Seconds that the steps of one run take about.
RUN_S = 3.0
SIDE = 8


class Case(NamedTuple):
    """A cohort, the goal of its ratio, and the milliseconds that each network waits in a step."""

    method: str
    students: int
    classes: int
    goal: float
    batch: int = 128
    milliseconds: float = 20.0
    launcher: Launcher = "local"

    def __str__(self) -> str:
        sizes = f"S={self.students}, B={self.batch}, C={self.classes}"
        on_ray = ", Ray" if self.launcher == "ray" else ""
        return f"{self.method}, {sizes}, {self.milliseconds:g} ms{on_ray}"


CASES = (
    Case("none", 1, 100, 1.04),
    Case("none", 2, 100, 1.08),
    Case("linear", 2, 10, 1.08),
    Case("linear", 2, 100, 1.08),
    Case("mean", 4, 10, 1.12),
    Case("mean", 4, 100, 1.12),
    Case("general", 4, 10, 1.12),
    Case("general", 4, 100, 1.12),
    Case("linear", 4, 10, 1.12),
    Case("linear", 4, 100, 1.12),
    Case("linear", 4, 100, 1.12, launcher="ray"),
    Case("dml", 4, 100, 1.2),
    Case("linear", 4, 100, 1.03, milliseconds=100),
    Case("linear", 8, 100, 1.03, milliseconds=100),
    Case("linear", 8, 1000, 1.25, batch=256, milliseconds=50),
)
QUICK = (Case("none", 1, 100, 1.04), Case("linear", 2, 100, 1.08), Case("mean", 4, 100, 1.12))
#: What a run records of a step, in milliseconds; the exchange contains the ensemble.
PARTS = ("data", "forward", "wait", "exchange", "ensemble", "backward")


class Measured(NamedTuple):
    """Milliseconds of a step: of the cohort, alone, and of the cohort's `PARTS`."""

    step: float
    alone: float
    parts: dict[str, float]

    @property
    def unexplained(self) -> float:
        """What no part accounts for."""
        return self.step - sum(value for name, value in self.parts.items() if name != "ensemble")


def measure(case: Case, rounds: int) -> Measured:
    """A case's figures: medians over rounds, each of which measures alone and together."""
    found = [_round(case) for _ in range(rounds)]
    parts = {name: median(each.parts[name] for each in found) for name in PARTS}
    return Measured(median(each.step for each in found), median(each.alone for each in found), parts)


def _round(case: Case) -> Measured:
    steps = WARMUP_STEPS + round(1e3 * RUN_S / case.milliseconds)
    with get_context("spawn").Pool(1) as pool:
        alone = pool.apply(_alone, (case, steps))
    step, parts = _together(case, steps)
    return Measured(step, alone, parts)


def _alone(case: Case, steps: int) -> float:
    """(a): milliseconds of a step of the plain loop."""
    torch.set_num_threads(1)
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as notes:
        network = Waiting(case.classes, case.milliseconds, notes)
        optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
        inputs, labels = torch.randn(case.batch, 1, SIDE, SIDE), torch.randint(case.classes, (case.batch,))
        for _ in range(steps):
            loss = F.cross_entropy(network(inputs), labels)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        return typical(steps_of(Path(notes)))


def _together(case: Case, steps: int) -> tuple[float, dict[str, float]]:
    """(b): milliseconds of a step of the cohort, and of its parts."""
    with tempfile.TemporaryDirectory() as folder:
        notes = Path(folder, "notes")
        notes.mkdir()
        recipe = _recipe(case, steps, Path(folder), notes)
        path = train(recipe, launcher=case.launcher, storage=str(Path(folder, "runs"))).path
        return typical(steps_of(notes)), _parts(path)


def _recipe(case: Case, steps: int, folder: Path, notes: Path) -> Recipe:
    """The recipe of one epoch on random images, which it writes."""
    train, test = (images(case, count, folder) for count in (steps, 1))
    model = f"{{name: 'benchmarks.waiting:Waiting', milliseconds: {case.milliseconds}, notes: '{notes}'}}"
    students = ", ".join(f"{{name: s{index}, model: {model}}}" for index in range(case.students))
    return parse_recipe(
        f"data: {{train: '{train}', test: '{test}', holdout_per_class: 1}}\nstudents: [{students}]\n"
        f"batch_size: {case.batch}\nepochs: 1\ndistillation: {{method: {case.method}}}"
    )


def images(case: Case, batches: int, folder: Path) -> Path:
    """A new data set of random images."""
    path, count = folder / f"{batches}.arrow", batches * case.batch
    pixels = np.random.default_rng(batches).integers(256, size=(count, 1, SIDE, SIDE), dtype=np.uint8)
    classes = tuple(f"class {number}" for number in range(case.classes))
    info = Info(classes, "raw", 1, (1, SIDE, SIDE), mean=(0.5,), std=(0.3,))
    write_batches(path, [(np.arange(count) % case.classes, pixels)], info)
    return path


def _parts(path: str) -> dict[str, float]:
    """Milliseconds of each part of a step of a run, from what it records."""
    values: dict[tuple[str, str], list[float]] = {}
    for row in read_metrics(Folder(path)).to_pylist():
        part = row["name"].removesuffix("_s")
        if row["split"] == "train" and part in PARTS and row["step"] >= WARMUP_STEPS:
            values.setdefault((row["student"], part), []).append(1e3 * row["value"])
    return {name: median(median(own) for (_, part), own in values.items() if part == name) for name in PARTS}


def typical(seconds: list[list[float]]) -> float:
    """Milliseconds of a step: the median over steps, then over processes, without those of trials."""
    return 1e3 * median(median(own[WARMUP_STEPS:]) for own in seconds if len(own) > WARMUP_STEPS)


def figures(quick: bool = False) -> list[Figure]:
    """(b) / (a) of each case."""
    found = []
    for case in QUICK if quick else CASES:
        measured = measure(case, 1)
        what = f"{case}: over the network alone"
        found.append(Figure("own devices", what, measured.step / measured.alone, case.goal))
    return found


def row(case: Case, measured: Measured) -> str:
    """A line of the table."""
    ratio = measured.step / measured.alone
    cells = [measured.step, measured.alone, *measured.parts.values(), measured.unexplained]
    numbers = " | ".join(f"{value:.1f}" for value in cells)
    return f"| {case} | {ratio:.2f} | {case.goal:g} | {numbers} |"


def main() -> None:
    """Measure all cases, print the table, and write it to --out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="", help="measure the cases whose name contains this")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    rows = []
    for case in CASES:
        if arguments.only in str(case):
            rows.append(row(case, measure(case, arguments.rounds)))
            print(rows[-1], flush=True)
    how = f"Random images of {SIDE} x {SIDE} pixels, medians of {arguments.rounds} rounds"
    page = [
        "# Cost of a step where each student has a device of its own",
        "",
        "Networks that only wait, so that the cores have nothing else to do than kdcl's own work.",
        "Milliseconds of a step: with kdcl; alone, in a plain loop over a batch that lies ready; and by",
        "part, as the run records it. The exchange contains the ensemble. `rest` is what no part accounts",
        "for.",
        "",
        *conditions("own_devices", how),
        "",
        f"| cohort | ratio | goal | step | alone | {' | '.join(PARTS)} | rest |",
        "| --- |" + " ---: |" * (len(PARTS) + 5),
        *rows,
    ]
    if arguments.out:
        arguments.out.write_text("\n".join(page) + "\n")


if __name__ == "__main__":
    main()

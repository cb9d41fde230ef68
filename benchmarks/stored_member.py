"""Cost of a step with a stored member, and of recording logits, over the same step without.

    python -m benchmarks.stored_member --out docs/results/stored-member.md

First the coordinator's own time in a step, the shortest of many: to form the answer without and with a file
of logits as one more member, and to record a student's and the ensemble's logits, for which nobody waits.
Then whole steps of networks that only wait (`benchmarks/waiting.py`), each as on a device of its own: each
round trains the same cohort three times, in another order each round. These figures are medians over steps,
then over students, then over rounds; compare ratios, not times.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
import torch

from benchmarks.conditions import conditions
from benchmarks.own_devices import WARMUP_STEPS, Case, images, typical
from benchmarks.waiting import steps_of
from kdcl_dist.config.recipe import Recipe
from kdcl_dist.config.recipe_file import parse_recipe
from kdcl_dist.coordinator.aggregator import Aggregator, Answer
from kdcl_dist.coordinator.logit_record import LogitRecord
from kdcl_dist.coordinator.stored_members import StoredMembers
from kdcl_dist.data.dataset import ArrowDataset
from kdcl_dist.data.logits_writer import LogitsWriter
from kdcl_dist.data.stored_logits import LogitsInfo
from kdcl_dist.exchange.message import Contribution
from kdcl_dist.training import train

CASES = (Case("linear", 2, 100, 1.02), Case("linear", 4, 100, 1.02), Case("mean", 2, 1000, 1.02))
STEPS, REPEATS = WARMUP_STEPS + 100, 300
ARMS = ("as it is", "stored member", "record")


def recipe_of(case: Case, arm: str, data: Path, stored: Path, notes: Path) -> Recipe:
    """The recipe of one arm; each process notes the begin of its steps in the folder `notes`."""
    model = f"{{name: 'benchmarks.waiting:Waiting', milliseconds: {case.milliseconds}, notes: '{notes}'}}"
    students = [f"{{name: s{index}, model: {model}}}" for index in range(case.students)]
    if arm == "stored member":
        students.append(f"{{name: t, logits: '{stored}'}}")
    record = "{students: [s0, ensemble]}" if arm == "record" else "null"
    return parse_recipe(
        f"data: {{train: '{data}', test: '{data}', views: 1}}\nstudents: [{', '.join(students)}]\n"
        f"batch_size: {case.batch}\nepochs: 1\n"
        f"distillation: {{method: {case.method}, record_logits: {record}}}"
    )


def write_stored(data: Path, path: Path) -> None:
    """Random logits of all samples of a data set, in one training view."""
    found = ArrowDataset(str(data))
    with LogitsWriter(path, LogitsInfo(found.classes, found.fingerprint, len(found), views=1)) as writer:
        writer.add(np.arange(len(found)), 0, torch.randn(len(found), len(found.classes)))


class Coordinator:
    """The coordinator of one arm, without processes."""

    def __init__(self, case: Case, recipe: Recipe, samples: int) -> None:
        self.case, self.recipe, self.samples = case, recipe, samples
        self.aggregator = Aggregator(recipe)
        self.aggregator.load_method(case.classes)
        self.aggregator.stored = StoredMembers.open(recipe)
        self.record = LogitRecord(recipe, samples, case.classes)

    def step(self) -> tuple[float, float]:
        """Milliseconds to answer random logits of random samples, and to record them."""
        ids, sizes = torch.randperm(self.samples)[: self.case.batch], (self.case.batch, self.case.classes)
        parts = [
            Contribution(ids, ids % self.case.classes, torch.randn(*sizes))
            if student.logits is None
            else Contribution(ids[:0], ids[:0], torch.empty(0, self.case.classes))
            for student in self.recipe.students
        ]
        began_s = time.perf_counter()
        answer: Answer = self.aggregator.answer(parts, 0)
        answered_s = time.perf_counter()
        self.record.add(0, answer, self.aggregator.predict)
        return 1e3 * (answered_s - began_s), 1e3 * (time.perf_counter() - answered_s)


def coordinator_row(case: Case) -> str:
    """A line of the first table."""
    with tempfile.TemporaryDirectory() as folder:
        data, stored = images(case, STEPS, Path(folder)), Path(folder, "stored.arrow")
        write_stored(data, stored)
        arms = [
            Coordinator(case, recipe_of(case, arm, data, stored, stored), STEPS * case.batch) for arm in ARMS
        ]
        steps = [[arm.step() for arm in arms] for _ in range(REPEATS)]
    (plain, _), (with_file, _), (_, record) = (
        tuple(map(min, zip(*own, strict=True))) for own in zip(*steps, strict=True)
    )
    share = 1 + (with_file - plain) / case.milliseconds
    return f"| {case} | {plain:.2f} | {with_file:.2f} | {share:.3f} | {record:.2f} |"


def step_ms(recipe: Recipe, notes: Path) -> float:
    """Milliseconds of a step of one run."""
    with tempfile.TemporaryDirectory() as storage:
        train(recipe, launcher="local", storage=storage)
    return typical(steps_of(notes))


def whole_row(case: Case, rounds: int) -> str:
    """A line of the second table."""
    found: dict[str, list[float]] = {arm: [] for arm in ARMS}
    with tempfile.TemporaryDirectory() as folder:
        data, stored = images(case, STEPS, Path(folder)), Path(folder, "stored.arrow")
        write_stored(data, stored)
        for number in range(rounds):
            for arm in ARMS[number % 3 :] + ARMS[: number % 3]:
                notes = Path(folder, f"{number}-{arm}")
                notes.mkdir()
                found[arm].append(step_ms(recipe_of(case, arm, data, stored, notes), notes))
    plain, *others = (median(found[arm]) for arm in ARMS)
    cells = [f"{value:.1f} | {value / plain:.3f}" for value in others]
    return f"| {case} | {plain:.1f} | {' | '.join(cells)} |"


def page(first: list[str], second: list[str], rounds: int) -> str:
    """The page of results."""
    lines = [
        "# Cost of a stored member and of recording",
        "",
        "The coordinator's own milliseconds in a step: to form the answer without and with a file of",
        "[logits](../stored-logits.md) as one more member, what that makes of a step, and to record the",
        "logits of a student and the ensemble with `distillation.record_logits`, while the students learn.",
        "The goal of the ratio is 1.02. One more member of any kind takes the solver of `linear` longer.",
        "",
        *conditions(f"stored_member --rounds {rounds}", f"The shortest of {REPEATS} steps each, in turn"),
        "",
        "| cohort | answer | with a file | ratio of the step | recording |",
        "| --- |" + " ---: |" * 4,
        *first,
    ]
    if second:
        lines += [
            "",
            f"Whole steps of networks that only wait, {STEPS} a run, medians of {rounds} alternating rounds,",
            "and ratios to the step as it is.",
            "",
            "| cohort | step | with a file | ratio | recording | ratio |",
            "| --- |" + " ---: |" * 5,
            *second,
        ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure all cases, print the tables, and write them to --out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="of whole steps; 0: none")
    parser.add_argument("--only", default="", help="measure the cases whose name contains this")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cases = [case for case in CASES if arguments.only in str(case)]
    first = [coordinator_row(case) for case in cases]
    print(*first, sep="\n", flush=True)
    second = [whole_row(case, arguments.rounds) for case in cases if arguments.rounds]
    print(*second, sep="\n", flush=True)
    if arguments.out:
        arguments.out.write_text(page(first, second, arguments.rounds))


if __name__ == "__main__":
    main()

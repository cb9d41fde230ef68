"""What comparison.html shows of several runs: arms, intervals over seeds, averaged curves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from kdcl_dist.report.arms import Arm
from kdcl_dist.report.axis import number
from kdcl_dist.report.blocks import Figure, Table
from kdcl_dist.report.lines import Line, line_chart
from kdcl_dist.report.points import Point, point_chart
from kdcl_dist.report.run_data import ENSEMBLE, RunData
from kdcl_dist.run.metrics import BEST, averages_of
from kdcl_dist.utils.intervals import Interval

__all__ = ["ComparisonView", "comparison_view"]


class Metric(NamedTuple):
    """A test result: its recorded name, its name in the report, unit, factor into the unit, decimals."""

    name: str
    title: str
    unit: str
    factor: float
    digits: int


#: The splits of the metrics that tests have, and their names in the report.
SPLITS = {"val": "validation", "test": "test"}
METRICS = (Metric("top1", "accuracy", "top-1 %", 100.0, 2), Metric("loss", "loss", "nats", 1.0, 4))


@dataclass(frozen=True)
class ComparisonView:
    """The parts of a comparison, in their order on the page.

    Attributes:
        arms: the arms.
        arms_table: the runs, seeds and changes of each arm.
        results: for each metric, the final test results of each arm.
        intervals: for each metric and student, the arms' results as points with intervals, and their gains.
        curves: for each metric and student, the arms' validation and test results over the epochs.
        runs: a row for each run.
    """

    arms: Sequence[Arm]
    arms_table: Table
    results: list[Table]
    intervals: list[Figure]
    curves: list[Figure]
    runs: Table


def comparison_view(arms: Sequence[Arm]) -> ComparisonView:
    """The comparison of several arms."""
    students = _students(arms)
    return ComparisonView(
        arms=arms,
        arms_table=_arms_table(arms),
        results=[_results(arms, students, metric) for metric in METRICS],
        intervals=[
            figure
            for metric in METRICS
            for drawn in (_means, _gains)
            for student in students
            if (figure := drawn(arms, student, metric)) is not None
        ],
        curves=[
            figure
            for split in SPLITS
            for metric in METRICS
            for student in students
            if (figure := _curves(arms, student, metric, split)) is not None
        ],
        runs=_runs(arms, students),
    )


def _students(arms: Sequence[Arm]) -> list[str]:
    """All students of all arms in order, the ensemble, and the names of averaged and of best weights."""
    runs = [run for arm in arms for run in arm.runs]
    names = [name for run in runs for name in run.recipe.names]
    averages = [name for run in runs for name in averages_of(run.recipe)]
    best = [name for run in runs for name in run.results() if name.endswith(BEST)]
    return list(dict.fromkeys([*names, ENSEMBLE, *averages, *best]))


def _arms_table(arms: Sequence[Arm]) -> Table:
    rows = []
    for index, arm in enumerate(arms):
        seeds = ", ".join(str(run.recipe.seed) for run in arm.finished) or "none"
        changes = "; ".join(arm.changes[:8]) + ("; and more" if len(arm.changes) > 8 else "")
        rows.append(
            [arm.label, str(len(arm.runs)), seeds, changes if index else "(the reference of the other arms)"]
        )
    caption = "An arm groups the runs whose recipes differ in seed and name only. Only finished runs count."
    return Table(caption, ["arm", "runs", "seeds of finished runs", "differences from the first arm"], rows)


def _results(arms: Sequence[Arm], students: Sequence[str], metric: Metric) -> Table:
    rows = []
    for arm in arms:
        cells = [arm.interval(student, metric.name, metric.factor) for student in students]
        runs = len(arm.finished)
        rows.append([arm.label, str(runs), *(_interval(*cell, runs, metric.digits) for cell in cells)])
    caption = (
        f"Test {metric.title} ({metric.unit}) at the end: mean over the finished runs, with the 95 % "
        "interval of that mean (Student's t). A dash stands where an arm has no such student, and (n of m) "
        "where only n results are finite."
    )
    return Table(caption, ["arm", "runs", *students], rows)


def _means(arms: Sequence[Arm], student: str, metric: Metric) -> Figure | None:
    """The arms' results of a student; None where fewer than two arms have one."""
    found = [(arm, arm.interval(student, metric.name, metric.factor)) for arm in arms]
    points = [Point(arm.label, arms.index(arm), interval) for arm, (interval, count) in found if count]
    title = f"{student}: test {metric.title}"
    caption = "Mean over the finished runs of each arm, with its 95 % interval."
    return _points(f"mean-{metric.name}-{student}", title, metric, points, caption)


def _gains(arms: Sequence[Arm], student: str, metric: Metric) -> Figure | None:
    """The gains of a student over the first arm; None where no arm has one."""
    base, *others = arms
    found = [(arm, arm.gain(base, student, metric.name, metric.factor)) for arm in others]
    points = [Point(arm.label, arms.index(arm), interval) for arm, (interval, count) in found if count]
    title = f"{student}: {metric.title} against {base.label}"
    caption = f"Mean difference from {base.label}, paired by seed, with its 95 % interval."
    return _points(f"gain-{metric.name}-{student}", title, metric, points, caption, zero=True)


def _points(
    ident: str, title: str, metric: Metric, points: list[Point], caption: str, *, zero: bool = False
) -> Figure | None:
    if len(points) < (1 if zero else 2):
        return None
    chart = point_chart(f"{ident}-svg", title, metric.unit, points, metric.digits, zero=zero)
    return Figure(ident, title, chart, caption)


def _interval(found: Interval, count: int, runs: int, digits: int) -> str:
    """The mean, half its interval, and the number of runs with a result if not all have one."""
    half = found.half_width
    text = number(found.value, digits) + (f" ± {number(half, digits)}" if math.isfinite(half) else "")
    return f"{text} ({count} of {runs})" if 0 < count < runs else text


def _curves(arms: Sequence[Arm], student: str, metric: Metric, split: str) -> Figure | None:
    lines = []
    top = (
        100.0 if metric.name == "top1" else math.inf
    )  # the limit of an accuracy, also where the interval is wider
    for index, arm in enumerate(arms):
        if rows := arm.curve(student, metric.name, metric.factor, split):
            band = [(x, max(0.0, low), min(top, high)) for x, _, low, high in rows if math.isfinite(low)]
            lines.append(Line(arm.label, index, [(x, mean) for x, mean, _, _ in rows], band))
    if not lines:
        return None
    title = f"{student}: {SPLITS[split]} {metric.title}"
    ident = "-".join(["arms", *(["val"] if split == "val" else []), metric.name, student])
    caption = (
        f"{SPLITS[split].capitalize()} {metric.title} of {student} after each epoch: mean of each arm's "
        "finished runs. The band is the 95 % interval of that mean (Student's t); the frame cuts it off."
    )
    return Figure(ident, title, line_chart(f"{ident}-svg", title, metric.unit, lines), caption)


def _runs(arms: Sequence[Arm], students: Sequence[str]) -> Table:
    heads = ["run", "arm", "seed", "state", *(f"{student}, top-1 %" for student in students)]
    rows = [
        [run.label, arm.label, str(run.recipe.seed), run.state, *_accuracies(run, students)]
        for arm in arms
        for run in arm.runs
    ]
    return Table("The test accuracy of each run after its last tested epoch.", heads, rows)


def _accuracies(run: RunData, students: Sequence[str]) -> list[str]:
    results = run.results()
    return [number(100 * results.get(name, {}).get("top1", math.nan), 2) for name in students]

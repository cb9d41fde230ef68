"""Several runs beside each other: arms, intervals over seeds, averaged curves."""

from __future__ import annotations

import math
from collections.abc import Sequence

from kdcl_dist.report.arms import Arm
from kdcl_dist.report.axis import number
from kdcl_dist.report.lines import Line, line_chart
from kdcl_dist.report.markup import figure, figures, note, section, table
from kdcl_dist.report.run_data import ENSEMBLE, RunData
from kdcl_dist.utils.intervals import Interval

__all__ = ["comparison"]

#: Test results: recorded name, what it is called, unit, factor, decimals.
RESULTS = (("top1", "accuracy", "top-1 %", 100.0, 2), ("loss", "loss", "nats", 1.0, 4))


def comparison(arms: Sequence[Arm]) -> str:
    """The comparison as HTML."""
    students = _students(arms)
    tables = [
        _table(arms, students, name, what, unit, factor, digits)
        for name, what, unit, factor, digits in RESULTS
    ]
    curves = [
        _curves(arms, student, name, what, unit, factor)
        for name, what, unit, factor, _ in RESULTS
        for student in students
    ]
    return "\n".join(
        (
            section("Arms", _arms(arms), *_remarks(arms)),
            section("Test results over seeds", *tables),
            section("Curves over seeds", figures(curves)),
            section("Runs", _runs(arms, students)),
        )
    )


def _students(arms: Sequence[Arm]) -> list[str]:
    """All students of all arms in order, the ensemble last."""
    names = dict.fromkeys(name for arm in arms for run in arm.runs for name in run.recipe.names)
    return [*names, ENSEMBLE]


def _arms(arms: Sequence[Arm]) -> str:
    rows = []
    for index, arm in enumerate(arms):
        seeds = ", ".join(str(run.recipe.seed) for run in arm.finished) or "none"
        changes = "; ".join(arm.changes[:8]) + ("; and more" if len(arm.changes) > 8 else "")
        rows.append(
            [arm.label, str(len(arm.runs)), seeds, changes if index else "(what the others differ from)"]
        )
    caption = "Runs whose recipes differ in nothing but seed and name are one arm. Only finished runs count."
    return table(caption, ["arm", "runs", "seeds of finished runs", "differs from the first arm in"], rows)


def _remarks(arms: Sequence[Arm]) -> list[str]:
    """What keeps the figures from meaning what they seem to."""
    remarks = []
    for arm in arms:
        if not arm.finished:
            remarks.append(note(f"Arm {arm.label}: no run has finished, so it has no results.", "warn"))
        elif len(arm.finished) == 1:
            remarks.append(note(f"Arm {arm.label}: one finished run only, so there is no interval."))
        if arm.repeated_seeds:
            seeds = ", ".join(map(str, arm.repeated_seeds))
            remarks.append(
                note(
                    f"Arm {arm.label}: seed {seeds} occurs more than once; such runs are equal, so the "
                    "intervals are too narrow.",
                    "warn",
                )
            )
    return remarks


def _table(
    arms: Sequence[Arm],
    students: Sequence[str],
    name: str,
    what: str,
    unit: str,
    factor: float,
    digits: int,
) -> str:
    rows = []
    for arm in arms:
        cells = [arm.interval(student, name, factor) for student in students]
        runs = len(arm.finished)
        rows.append([arm.label, str(runs), *(_interval(*cell, runs, digits) for cell in cells)])
    caption = (
        f"Test {what} ({unit}) at the end: mean over the finished runs, with the 95 % interval of that mean "
        "(Student's t). – where an arm has no such student; (n of m) where a result of only n runs is finite."
    )
    return table(caption, ["arm", "runs", *students], rows)


def _interval(found: Interval, count: int, runs: int, digits: int) -> str:
    """Mean and half the interval, and how many of the runs have a result if not all."""
    half = found.high - found.value
    text = number(found.value, digits) + (f" ± {number(half, digits)}" if math.isfinite(half) else "")
    return f"{text} ({count} of {runs})" if 0 < count < runs else text


def _curves(arms: Sequence[Arm], student: str, name: str, what: str, unit: str, factor: float) -> str:
    lines = []
    top = 100.0 if name == "top1" else math.inf  # no accuracy is more, whatever the interval says
    for index, arm in enumerate(arms):
        if rows := arm.curve(student, name, factor):
            band = [(x, max(0.0, low), min(top, high)) for x, _, low, high in rows if math.isfinite(low)]
            lines.append(Line(arm.label, index, [(x, mean) for x, mean, _, _ in rows], band))
    if not lines:
        return ""
    title, ident = f"{student}: test {what}", f"arms-{name}-{student}"
    caption = (
        f"Test {what} of {student} after each epoch: mean of each arm's finished runs; the band is the 95 % "
        "interval of that mean (Student's t), cut off at the frame."
    )
    return figure(ident, title, line_chart(f"{ident}-svg", title, unit, lines), caption)


def _runs(arms: Sequence[Arm], students: Sequence[str]) -> str:
    heads = ["run", "arm", "seed", "state", *(f"{student}, top-1 %" for student in students)]
    rows = [
        [run.label, arm.label, str(run.recipe.seed), run.state, *_accuracies(run, students)]
        for arm in arms
        for run in arm.runs
    ]
    return table("Each run, with its test accuracy after its last tested epoch.", heads, rows)


def _accuracies(run: RunData, students: Sequence[str]) -> list[str]:
    results = run.results()
    return [number(100 * results.get(name, {}).get("top1", math.nan), 2) for name in students]

"""The summary of an experiment: for each arm and student the result, its interval, and the gain."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields

import pyarrow as pa
import pyarrow.parquet as pq

from kdcl_dist.compare.experiment import Table
from kdcl_dist.compare.runs import Outcome
from kdcl_dist.run.storage import Folder
from kdcl_dist.utils.intervals import NO_INTERVAL, Interval, mean_interval, median_interval
from kdcl_dist.utils.text import shown

__all__ = ["Row", "markdown", "summarise", "write_summary"]


@dataclass(frozen=True)
class Row:
    """One student of one arm. Figures are percent for top1 and top5, nats for loss.

    `gain` is the statistic of the differences from the baseline arm, paired by seed; NaN where the baseline
    has no such student. `published` is NaN where the table names no published figure.
    """

    arm: str
    student: str
    seeds: int
    value: float
    low: float
    high: float
    gain: float
    gain_low: float
    gain_high: float
    published: float


def summarise(table: Table, outcomes: Sequence[Outcome]) -> list[Row]:
    """A row for each arm and student with results, in the order of the table."""
    found = _values(table, outcomes)
    interval = median_interval if table.statistic == "median" else mean_interval
    rows = []
    for arm in table.arms:
        for student in found.get(arm.name, {}):
            own = found[arm.name][student]
            base = found.get(table.baseline or "", {}).get(student, {})
            both = [seed for seed in own if seed in base and arm.name != table.baseline]
            gain = interval([own[seed] - base[seed] for seed in both]) if both else NO_INTERVAL
            value = interval(list(own.values()))
            published = arm.published.get(student, math.nan)
            rows.append(Row(arm.name, student, len(own), *value[:3], *gain[:3], published))
    return rows


def markdown(table: Table, rows: Sequence[Row]) -> str:
    """The rows as a Markdown page: a line for each arm, a column for each student and published figure."""
    students = list(dict.fromkeys(row.student for row in rows))
    cells = {(row.arm, row.student): row for row in rows}
    printed = [name for name in students if any(name in arm.published for arm in table.arms)]
    heads = ["arm", "seeds", *students, *(f"{name}, published" for name in printed)]
    lines = [f"# {shown(table.title) or table.name}", "", _caption(table, rows), ""]
    lines += ["| " + " | ".join(heads) + " |", "| --- |" + " ---: |" * (len(heads) - 1)]
    for arm in table.arms:
        own = [cells.get((arm.name, student)) for student in students]
        if not any(own):
            continue
        texts = ["" if row is None else _cell(table, row) for row in own]
        figures = [f"{arm.published[name]:g}" if name in arm.published else "" for name in printed]
        seeds = max(row.seeds for row in own if row)
        lines.append("| " + " | ".join([arm.name, str(seeds), *texts, *figures]) + " |")
    return "\n".join(lines) + "\n"


def write_summary(table: Table, outcomes: Sequence[Outcome], folder: Folder) -> str:
    """Write table-METRIC.md, .csv and .parquet, and values-METRIC.csv with the figures of each run.

    The names of the files hold the metric, so two tables of the same name can show two metrics of the same
    runs.

    Returns:
        The Markdown.
    """
    rows = summarise(table, outcomes)
    page = markdown(table, rows)
    folder.write(f"table-{table.metric}.md", page.encode())
    heads = [field.name for field in fields(Row)]
    folder.write(f"table-{table.metric}.csv", _to_csv(heads, [astuple(row) for row in rows]))
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({name: [getattr(row, name) for row in rows] for name in heads}), sink)
    folder.write(f"table-{table.metric}.parquet", bytes(sink.getvalue()))
    values = [
        (arm, student, seed, value)
        for arm, students in _values(table, outcomes).items()
        for student, by_seed in students.items()
        for seed, value in by_seed.items()
    ]
    folder.write(f"values-{table.metric}.csv", _to_csv(["arm", "student", "seed", table.metric], values))
    return page


def _values(table: Table, outcomes: Sequence[Outcome]) -> dict[str, dict[str, dict[int, float]]]:
    """The metric by arm, student and seed."""
    factor = 1 if table.metric == "loss" else 100
    found: dict[str, dict[str, dict[int, float]]] = {}
    for outcome in outcomes:
        for student, values in (outcome.results or {}).items():
            by_student = found.setdefault(outcome.job.arm, {})
            by_student.setdefault(student, {})[outcome.job.seed] = factor * values[table.metric]
    return found


def _caption(table: Table, rows: Sequence[Row]) -> str:
    unit = "nats" if table.metric == "loss" else "%"
    text = f"Test {table.metric} in {unit}, {table.statistic} over seeds with the 95% interval"
    if any(row.seeds < 6 for row in rows) and table.statistic == "median":
        text += (
            " (with fewer than 6 seeds: from the smallest to the largest, which covers the median less often)"
        )
    if table.baseline:
        text += f"; in brackets the gain over `{table.baseline}`, paired by seed"
    return text + ". `ensemble`: the mean of the students' probabilities, weighted for `general`."


def _cell(table: Table, row: Row) -> str:
    value = _text(table, Interval(row.value, row.low, row.high, math.nan))
    if math.isnan(row.gain):
        return value
    return f"{value} ({_text(table, Interval(row.gain, row.gain_low, row.gain_high, math.nan), '+')})"


def _text(table: Table, found: Interval, sign: str = "") -> str:
    digits = 4 if table.metric == "loss" else 2
    text = f"{found.value:{sign}.{digits}f}"
    if math.isnan(found.low):
        return text
    if table.statistic == "mean":
        return f"{text} ± {found.half_width:.{digits}f}"
    return f"{text} [{found.low:{sign}.{digits}f}, {found.high:{sign}.{digits}f}]"


def _to_csv(heads: Sequence[str], rows: Sequence[Sequence[object]]) -> bytes:
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(heads)
    writer.writerows([["" if value != value else value for value in row] for row in rows])
    return file.getvalue().encode()

"""The summary of an experiment: for each arm and student the result, its interval, and the gain."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields, replace

import pyarrow as pa
import pyarrow.parquet as pq

from kdcl_dist.compare.experiment import Table
from kdcl_dist.compare.runs import Outcome
from kdcl_dist.compare.significance import holm, sign_test, t_test
from kdcl_dist.run.storage import Folder
from kdcl_dist.utils.intervals import NO_INTERVAL, Interval, mean_interval, median_interval
from kdcl_dist.utils.text import shown

__all__ = ["Row", "markdown", "short_markdown", "summarise", "write_summary"]

#: The chance of a mistake among all gains that are marked.
LEVEL = 0.05


@dataclass(frozen=True)
class Row:
    """One student of one arm. Figures are percent for top1 and top5, nats for loss.

    `gain` is the statistic of the differences from the baseline arm, paired by seed; NaN where the baseline
    has no such student. `published` is NaN where the table names no published figure. `p` is the chance of
    a gain as far from 0 if there were none, by the paired t test, of a median by the sign test; `p_holm` is
    that chance adjusted for all gains of the table. Both are NaN where fewer than two seeds are paired.
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
    p: float = math.nan
    p_holm: float = math.nan

    @property
    def differs(self) -> bool:
        """Whether the gain differs from 0 at the level `LEVEL` over all gains of the table."""
        return self.p_holm <= LEVEL


def summarise(table: Table, outcomes: Sequence[Outcome]) -> list[Row]:
    """A row for each arm and student with results, in the order of the table."""
    found = _values(table, outcomes)
    median = table.statistic == "median"
    interval, test = (median_interval, sign_test) if median else (mean_interval, t_test)
    rows = []
    for arm in table.arms:
        for student, own in found.get(arm.name, {}).items():
            base = found.get(table.baseline or "", {}).get(student, {})
            both = [seed for seed in own if seed in base and arm.name != table.baseline]
            gains = [own[seed] - base[seed] for seed in both]
            gain = interval(gains) if gains else NO_INTERVAL
            value = interval(list(own.values()))
            published = arm.published.get(student, math.nan)
            rows.append(Row(arm.name, student, len(own), *value[:3], *gain[:3], published, test(gains)))
    adjusted = holm([row.p for row in rows])
    return [replace(row, p_holm=p) for row, p in zip(rows, adjusted, strict=True)]


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


def short_markdown(table: Table, rows: Sequence[Row]) -> str:
    """A table for a README, with one line below: no gains, but an arrow at each that counts."""
    students = list(dict.fromkeys(row.student for row in rows))
    cells = {(row.arm, row.student): _marked(table, row) for row in rows}
    lines = [f"| | {' | '.join(students)} |", "| --- |" + " ---: |" * len(students)]
    for arm in dict.fromkeys(row.arm for row in rows):
        own = " | ".join(cells.get((arm, student), "") for student in students)
        lines.append(f"| {arm} | {own} |")
    unit = "nats" if table.metric == "loss" else "%"
    counts = sorted({row.seeds for row in rows})
    seeds = "no" if not counts else f"{counts[0]} to {counts[-1]}" if counts[1:] else f"{counts[0]}"
    note = f"Test {table.metric}, {unit}: {table.statistic} over {seeds} seeds with the 95% interval."
    if tested := _tested(table, rows):
        note += f" Arrows: differs from `{table.baseline}` {tested}."
    return "\n".join([*lines, "", note]) + "\n"


def _marked(table: Table, row: Row) -> str:
    """A value, in bold with an arrow if its gain counts."""
    value = _text(table, Interval(row.value, row.low, row.high, math.nan))
    return f"**{value}** {'↑' if row.gain > 0 else '↓'}" if row.differs else value


def write_summary(table: Table, outcomes: Sequence[Outcome], folder: Folder) -> str:
    """Write table-METRIC.md, .csv and .parquet, readme-METRIC.md, and values-METRIC.csv with all figures.

    The names of the files hold the metric, so two tables of the same name can show two metrics of the same
    runs.

    Returns:
        The Markdown.
    """
    rows = summarise(table, outcomes)
    page = markdown(table, rows)
    folder.write(f"table-{table.metric}.md", page.encode())
    folder.write(f"readme-{table.metric}.md", short_markdown(table, rows).encode())
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
    if tested := _tested(table, rows):
        text += f", in bold if it differs from 0 {tested}"
    return text + ". `ensemble`: the mean of the students' probabilities, weighted for `general`."


def _tested(table: Table, rows: Sequence[Row]) -> str:
    """At which level and by which test gains are marked; empty where there is none to test."""
    count = sum(not math.isnan(row.p) for row in rows)
    test = "sign test" if table.statistic == "median" else "paired t test"
    return f"at {100 * LEVEL:g}% over all {count} gains of the table ({test}, Holm)" if count else ""


def _cell(table: Table, row: Row) -> str:
    value = _text(table, Interval(row.value, row.low, row.high, math.nan))
    if math.isnan(row.gain):
        return value
    gain = _text(table, Interval(row.gain, row.gain_low, row.gain_high, math.nan), "+")
    return f"{value} (**{gain}**)" if row.differs else f"{value} ({gain})"


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

"""Figures and tables on the soft targets: their teachers, their quality, and their age."""

from __future__ import annotations

import math

from kdcl_dist.report.axis import number
from kdcl_dist.report.bars import heat_map
from kdcl_dist.report.blocks import Figure, Table
from kdcl_dist.report.charts import ANALYSIS, CONFLICT, ENSEMBLES, TARGETS, WINDOW, draw
from kdcl_dist.report.run_data import ENSEMBLE, RunData
from kdcl_dist.run.metrics import BINS

__all__ = ["targets_table", "teaching_figures", "window_figures"]


def teaching_figures(run: RunData, prefix: str) -> list[Figure]:
    """Weights, wins, disagreement and conflicts of the students; ids begin with `prefix`."""
    return [*draw(run, ANALYSIS, prefix), *_disagreement(run, prefix), *draw(run, CONFLICT, prefix)]


def _disagreement(run: RunData, prefix: str) -> list[Figure]:
    names, after = run.recipe.names, run.last_quarter
    values = [
        [
            100 * run.mean("analysis", name, f"disagreement/{other}" if other else "error", after)
            for other in (*names, "")
        ]
        for name in names
    ]
    if not any(math.isfinite(value) for row in values for value in row):
        return []
    caption = (
        "Share of training samples, in %, on which a student's first choice differs from that of another "
        f"student or, in the column label, from the label. Mean over {_last_epochs(run)}. Students that "
        "never disagree have nothing to teach each other."
    )
    title, ident = "Disagreement", prefix + "disagreement"
    return [Figure(ident, title, heat_map(f"{ident}-svg", title, names, [*names, "label"], values), caption)]


def targets_table(run: RunData) -> Table | None:
    """The five soft targets in numbers; None if no step was analysed."""
    rows = []
    for which in ENSEMBLES:
        names = ((chart, f"{which}_{chart.name}") for chart in TARGETS)
        found = [c.factor * run.mean("analysis", ENSEMBLE, name, run.last_quarter) for c, name in names]
        if any(map(math.isfinite, found)):
            rows.append([which, *(number(value, 4) for value in found)])
    caption = (
        f"The five soft targets on the sampled steps of {_last_epochs(run)}. The students learned from "
        f"{run.recipe.distillation.method_name}; the other methods were applied to the same logits."
    )
    heads = ["ensemble", *(f"{chart.name} ({chart.unit})" for chart in TARGETS)]
    return Table(caption, heads, rows) if rows else None


def _last_epochs(run: RunData) -> str:
    """The epochs of the means, in words."""
    first = run.last_quarter + 1
    last = f"the last quarter of the analysed epochs (from epoch {first} on)"
    return last if first < run.epochs else f"epoch {run.epochs}"


def window_figures(run: RunData, prefix: str) -> list[Figure]:
    """Coverage and staleness; empty for a run whose students all have the same samples at a step."""
    return [*draw(run, WINDOW, prefix), *_histogram(run, prefix)]


def _histogram(run: RunData, prefix: str) -> list[Figure]:
    names = [name for name in run.recipe.names if run.curve("window", name, "coverage")]
    shares = {b: [100 * run.mean("window", name, f"staleness/{b}") for name in names] for b in BINS}
    shares = {b: column for b, column in shares.items() if any(column)}
    rows = list(zip(*shares.values(), strict=True))
    if not rows:
        return []
    caption = (
        "Age in steps of the peers' logits behind a student's soft targets: share in % of each range, mean "
        "over all epochs."
    )
    title, ident = "Ages of the peers' logits", prefix + "ages"
    return [Figure(ident, title, heat_map(f"{ident}-svg", title, names, list(shares), rows), caption)]

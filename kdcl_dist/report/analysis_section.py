"""The sections on what the ensembles and the students do to each other."""

from __future__ import annotations

import math

from kdcl_dist.report.axis import number
from kdcl_dist.report.bars import heat_map
from kdcl_dist.report.charts import ANALYSIS, CONFLICT, ENSEMBLES, TARGETS, draw, draw_targets
from kdcl_dist.report.markup import figure, figures, note, section, table
from kdcl_dist.report.run_data import ENSEMBLE, RunData

__all__ = ["analysis_sections"]


def analysis_sections(run: RunData, prefix: str) -> str:
    """Who teaches whom, and what the soft targets are like; ids of the figures begin with `prefix`."""
    drawn = draw(run, ANALYSIS, prefix)
    measured = any(key.split == "analysis" for key in run.curves)
    if not measured:
        why = "no analysis was recorded (analysis.every_steps is 0, or no sampled step was reached)"
        plain = note(f"Soft targets and conflicts cannot be shown: {why}.")
        return section("Who teaches whom", plain, figures(drawn))
    return section(
        "Who teaches whom",
        figures([*drawn, _disagreement(run, prefix), *draw(run, CONFLICT, prefix)]),
    ) + section("The soft targets", figures(draw_targets(run, prefix)), _targets(run))


def _disagreement(run: RunData, prefix: str) -> str:
    names, after = run.recipe.names, run.last_quarter
    values = [
        [
            100 * run.mean("analysis", name, f"disagreement/{other}" if other else "error", after)
            for other in (*names, "")
        ]
        for name in names
    ]
    if not any(math.isfinite(value) for row in values for value in row):
        return ""
    caption = (
        f"Share of training samples, in %, on which a student's first choice differs from another's, and in "
        f"the column label: is wrong. Mean over {_window(run)}. Students that never differ teach nothing new."
    )
    title, ident = "Disagreement", prefix + "disagreement"
    return figure(ident, title, heat_map(f"{ident}-svg", title, names, [*names, "label"], values), caption)


def _targets(run: RunData) -> str:
    heads = ["ensemble", *(f"{chart.name} ({chart.unit})" for chart in TARGETS)]
    rows = []
    for which in ENSEMBLES:
        names = ((chart, f"{which}_{chart.name}") for chart in TARGETS)
        found = [c.factor * run.mean("analysis", ENSEMBLE, name, run.last_quarter) for c, name in names]
        if any(map(math.isfinite, found)):
            rows.append([which, *(number(value, 4) for value in found)])
    if not rows:
        return ""
    caption = (
        f"The five soft targets over {_window(run)}, on the sampled steps. This run learnt from "
        f"{run.recipe.distillation.method}; the others are what the same logits would have given."
    )
    return table(caption, heads, rows)


def _window(run: RunData) -> str:
    """The epochs of the means in words."""
    first = run.last_quarter + 1
    last = f"the last quarter of the measured epochs (from epoch {first} on)"
    return last if first < run.epochs else f"epoch {run.epochs}"

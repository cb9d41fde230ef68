"""The section on what the students' different orders of the data do: how old and how many the targets are."""

from __future__ import annotations

from kdcl_dist.report.bars import heat_map
from kdcl_dist.report.charts import WINDOW, draw
from kdcl_dist.report.markup import figure, figures, section
from kdcl_dist.report.run_data import RunData
from kdcl_dist.run.metrics import BINS

__all__ = ["window_section"]


def window_section(run: RunData, prefix: str) -> str:
    """Coverage and staleness; empty for a run in which all students see the same samples at a step."""
    if not any(key.split == "window" for key in run.curves):
        return ""
    return section("Different orders", figures([*draw(run, WINDOW, prefix), _histogram(run, prefix)]))


def _histogram(run: RunData, prefix: str) -> str:
    names = [name for name in run.recipe.names if run.curve("window", name, "coverage")]
    shares = {b: [100 * run.mean("window", name, f"staleness/{b}") for name in names] for b in BINS}
    shares = {b: column for b, column in shares.items() if any(column)}
    caption = (
        "Share of the peers' logits behind a student's soft targets, in %, by their age in steps: mean over "
        "all epochs."
    )
    title, ident = "How old the peers' logits are", prefix + "ages"
    rows = list(zip(*shares.values(), strict=True))
    if not rows:
        return ""
    return figure(ident, title, heat_map(f"{ident}-svg", title, names, list(shares), rows), caption)

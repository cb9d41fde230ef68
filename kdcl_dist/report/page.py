"""The whole page: one file that loads no other file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from markupsafe import Markup

from kdcl_dist.report.arms import group
from kdcl_dist.report.blocks import render
from kdcl_dist.report.comparison import comparison_view
from kdcl_dist.report.run_data import RunData
from kdcl_dist.report.run_view import run_view
from kdcl_dist.version import __version__

__all__ = ["page"]

HERE = Path(__file__).parent


def page(runs: Sequence[RunData]) -> str:
    """The report on one run, or the comparison of several, as HTML.

    Args:
        runs: at least one.
    """
    frame = {"style": _file("style.css"), "script": _file("script.js"), "version": __version__}
    if len(runs) == 1:
        return render("single.html", title=runs[0].recipe.name, run=run_view(runs[0]), **frame)
    return render(
        "comparison.html",
        title=f"Comparison of {len(runs)} runs",
        comparison=comparison_view(group(runs)),
        runs=[run_view(run, f"run{i}-") for i, run in enumerate(runs, 1)],
        **frame,
    )


def _file(name: str) -> Markup:
    return Markup((HERE / name).read_text(encoding="utf-8"))

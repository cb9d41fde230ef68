"""The whole page: one file that needs nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from string import Template

from kdcl_dist.report.arms import group
from kdcl_dist.report.comparison import comparison
from kdcl_dist.report.markup import details
from kdcl_dist.report.run_data import RunData
from kdcl_dist.report.sections import run_sections
from kdcl_dist.version import __version__

__all__ = ["page"]

HERE = Path(__file__).parent


def page(runs: Sequence[RunData]) -> str:
    """The report on one run, or the comparison of several, as HTML.

    Args:
        runs: at least one.
    """
    if len(runs) == 1:
        title, body = runs[0].recipe.name, run_sections(runs[0])
    else:
        title, body = f"Comparison of {len(runs)} runs", comparison(group(runs)) + _each(runs)
    return Template(_file("page.html")).substitute(
        title=escape(title),
        style=_file("style.css"),
        script=_file("script.js"),
        version=escape(__version__),
        body=body,
    )


def _each(runs: Sequence[RunData]) -> str:
    parts = [
        details(
            f"{run.label}: {run.recipe.name}, seed {run.recipe.seed}, {run.state}",
            run_sections(run, f"run{i}-"),
            "run",
        )
        for i, run in enumerate(runs, 1)
    ]
    return "\n<h2>Each run</h2>\n" + "\n".join(parts)


def _file(name: str) -> str:
    return (HERE / name).read_text(encoding="utf-8")

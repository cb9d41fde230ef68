"""`kdcl report`: the HTML page on a run, or on several."""

from __future__ import annotations

from pathlib import Path

import click

from kdcl_dist.cli.group import echo, kdcl, reports_errors

__all__ = ["report"]


@kdcl.command()
@click.argument("runs", nargs=-1, required=True, metavar="RUN...")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="The file to write. [default: report.html in the run's folder; for several runs, in this one]",
)
@reports_errors
def report(runs: tuple[str, ...], out: Path | None) -> None:
    """Write an HTML page on one RUN folder, or one page that compares several.

    The page shows the mean and the 95% interval of runs whose recipes differ in the seed only.
    """
    from kdcl_dist.report.writing import write_report

    echo(write_report(runs, out))

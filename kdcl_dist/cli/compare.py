"""`kdcl compare`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from kdcl_dist.cli.group import echo, kdcl, reports_errors

if TYPE_CHECKING:
    from rich.console import Console

    from kdcl_dist.compare.experiment import Job, Table
    from kdcl_dist.compare.runs import Outcome
    from kdcl_dist.run.storage import Folder

__all__ = ["compare"]


@kdcl.command()
@click.argument("table", type=click.Path(path_type=Path))
@click.option("--launcher", type=click.Choice(["ray", "local"]), default="ray", show_default=True)
@click.option("--storage", default="runs", show_default=True, help="Path or URI of the folder of runs.")
@click.option(
    "--at-once",
    type=click.IntRange(1),
    help="Runs at the same time. [default: all that fit the cluster; 1 locally]",
)
@reports_errors
def compare(table: Path, launcher: str, storage: str, at_once: int | None) -> None:
    """Train the arms and seeds of a TABLE, and write the test results of each arm.

    The same command skips finished runs and resumes stopped ones. The results lie in the folder of the
    table's name below the storage.
    """
    from kdcl_dist.cli.lasting_output import lasting_console
    from kdcl_dist.compare.experiment import jobs_of, load_table
    from kdcl_dist.compare.summary import write_summary
    from kdcl_dist.run.storage import Folder

    console = lasting_console()
    wanted = load_table(table)
    jobs = jobs_of(wanted, table.parent)
    folder = Folder(storage) / wanted.name
    outcomes, stopped = _run(wanted, jobs, folder.uri, launcher, at_once, console)
    page = write_summary(wanted, [outcome for outcome in outcomes if outcome.results], folder)
    click.echo(f"\n{page}\nwritten to {folder}/table-{wanted.metric}.md, .csv and .parquet")
    _report(outcomes, folder)
    if stopped:
        echo("stopped; the same command continues", err=True)
        sys.exit(130)
    if failed := [outcome for outcome in outcomes if outcome.error]:
        names = ", ".join(outcome.job.name for outcome in failed)
        echo(f"kdcl: {len(failed)} of {len(jobs)} runs failed: {names}", err=True)
        sys.exit(1)


def _report(outcomes: list[Outcome], folder: Folder) -> None:
    """Write the HTML report on all finished runs, last of all: every other result is on disk by then."""
    from kdcl_dist.report.writing import write_report

    runs = [(folder / outcome.job.name).uri for outcome in outcomes if outcome.results]
    if runs and folder.local is not None:
        echo(f"report: {write_report(runs, folder.local / 'report.html')}")


def _run(
    table: Table, jobs: list[Job], storage: str, launcher: str, at_once: int | None, console: Console
) -> tuple[list[Outcome], bool]:
    """Train all jobs; their outcomes, and whether a signal stopped them before their end."""
    from kdcl_dist.cli.compare_display import Progress
    from kdcl_dist.compare.runs import run_jobs
    from kdcl_dist.launch.signals import stop_on_signals

    with (
        Progress(table, len(jobs), console) as progress,
        stop_on_signals(progress.print) as stop,
        _free_capacity(jobs, launcher) as capacity,
    ):
        outcomes = run_jobs(
            jobs,
            storage,
            launcher=launcher,  # type: ignore[arg-type]
            max_concurrent_runs=at_once or capacity,
            stop=stop,
            on_event=progress.handle,
            on_outcome=progress.handle_outcome,
        )
    return outcomes, stop.is_set() and len(outcomes) < len(jobs)


@contextmanager
def _free_capacity(jobs: list[Job], launcher: str) -> Iterator[int]:
    """The number of runs that fit at once; with Ray, all runs share one connection to the cluster."""
    if launcher == "local":
        yield 1
        return
    from kdcl_dist.launch.ray import driver

    with driver.cluster([job.recipe for job in jobs], lambda event: None):
        yield min(driver.max_concurrent_runs(job.recipe) for job in jobs)

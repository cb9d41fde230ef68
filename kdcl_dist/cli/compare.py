"""`kdcl compare`: the arms and seeds of a table, trained and summarised."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from kdcl_dist.cli.group import echo, kdcl, reports_errors, takes_launcher, takes_storage

if TYPE_CHECKING:
    from rich.console import Console

    from kdcl_dist.compare.experiment import Job, Table
    from kdcl_dist.compare.runs import Outcome
    from kdcl_dist.run.events import Event
    from kdcl_dist.run.storage import Folder

__all__ = ["compare"]


@kdcl.command()
@click.argument("table", type=click.Path(path_type=Path))
@takes_launcher
@takes_storage
@click.option(
    "--at-once",
    type=click.IntRange(1),
    help="Runs at the same time. [default: all that fit the cluster; 1 locally]",
)
@click.option("--only", multiple=True, metavar="ARM", help="Train only the runs of this arm; repeatable.")
@click.option(
    "--dry-run",
    type=click.IntRange(min=1),
    metavar="STEPS",
    help="Take this many steps of each arm, say how long the table takes, and leave nothing.",
)
@reports_errors
def compare(
    table: Path,
    launcher: str,
    storage: str,
    at_once: int | None,
    only: tuple[str, ...],
    dry_run: int | None,
) -> None:
    """Train the arms and seeds of a TABLE, and write the test results of each arm.

    The same command skips finished runs and resumes stopped ones; with more seeds in the table it trains the
    new runs. The results lie in the folder of the table's name below the storage.
    """
    from kdcl_dist.cli.lasting_output import lasting_console
    from kdcl_dist.compare.experiment import jobs_of, load_table, only_arms
    from kdcl_dist.compare.runs import finished_before
    from kdcl_dist.run.prepare import runs_folder

    wanted = load_table(table)
    jobs = jobs_of(wanted, table.parent)
    chosen, folder = only_arms(wanted, jobs, only), runs_folder(storage) / wanted.name
    done = finished_before(jobs, folder.uri)
    if dry_run is not None:
        before = {outcome.job.name for outcome in done}
        _try([job for job in chosen if job.name not in before], dry_run, folder.uri, launcher, at_once)
        return
    ended, stopped = _run(wanted, chosen, done, folder.uri, launcher, at_once, lasting_console())
    found = {outcome.job.name: outcome for outcome in [*done, *ended]}
    _write(wanted, [found[job.name] for job in jobs if job.name in found], folder)
    if stopped:
        echo("stopped; the same command continues", err=True)
        sys.exit(130)
    if failed := [outcome for outcome in ended if outcome.error]:
        names = ", ".join(outcome.job.name for outcome in failed)
        echo(f"kdcl: {len(failed)} of {len(chosen)} runs failed: {names}", err=True)
        sys.exit(1)


def _try(jobs: list[Job], steps: int, storage: str, launcher: str, at_once: int | None) -> None:
    """Tell how long each arm and the table take, by some steps of one run of each arm."""
    from kdcl_dist.compare.forecast import duration
    from kdcl_dist.compare.trial import try_arms

    if not jobs:
        echo("all runs are finished")
        return
    left_s: list[float] = []
    with _free_capacity(jobs, launcher) as capacity:
        for found in try_arms(jobs, steps, launcher=launcher, storage=storage):  # type: ignore[arg-type]
            trial = found.trial
            made_of = f"a start of {duration(found.start_s)} and {trial.epochs} epochs of "
            made_of += f"{trial.steps_per_epoch:,} steps of {trial.step_s:.3g} s"
            runs = f"{found.runs} run{'s' * (found.runs > 1)} of about {duration(found.run_s)}"
            echo(f"{found.arm}: {runs} ({made_of})")
            left_s += [found.run_s] * found.runs
    share = at_once or capacity
    total = duration(max(sum(left_s) / share, max(left_s, default=0.0)))
    echo(f"{len(left_s)} to train, {share} at once: about {total}, without tests and checkpoints")


def _write(table: Table, outcomes: list[Outcome], folder: Folder) -> None:
    """Write and print the table, and write the page."""
    from kdcl_dist.compare.summary import write_summary

    page = write_summary(table, [outcome for outcome in outcomes if outcome.results], folder)
    click.echo(f"\n{page}\nwritten to {folder}/table-{table.metric}.md, .csv and .parquet")
    _report(table, outcomes, folder)


def _report(table: Table, outcomes: list[Outcome], folder: Folder) -> None:
    """Write the HTML report on all finished runs, last of all: every other result is on disk by then.

    The page compares all arms with its first, which is the table's baseline.
    """
    from kdcl_dist.report.writing import write_report

    finished = [outcome.job for outcome in outcomes if outcome.results]
    ordered = sorted(finished, key=lambda job: job.arm != table.baseline)
    runs = [(folder / job.name).uri for job in ordered]
    if runs and folder.local is not None:
        echo(f"report: {write_report(runs, folder.local / 'report.html')}")


def _run(
    table: Table,
    jobs: list[Job],
    done: list[Outcome],
    storage: str,
    launcher: str,
    at_once: int | None,
    console: Console,
) -> tuple[list[Outcome], bool]:
    """Train the jobs that are not done; their outcomes, and whether a signal stopped them before that."""
    from kdcl_dist.cli.compare_display import Progress
    from kdcl_dist.compare.runs import run_jobs, tell_trackers
    from kdcl_dist.launch.signals import stop_on_signals
    from kdcl_dist.run.events import Note, Warned

    def show(job: Job, event: Event) -> None:
        if isinstance(event, Warned | Note):
            console.print(f"{job.name}: {event.text}", markup=False)

    before = {outcome.job.name for outcome in done}
    rest = [job for job in jobs if job.name not in before]
    tracked = [job for job in jobs if job.name in before and set(job.recipe.trackers) - {"tensorboard"}]
    failed = tell_trackers(tracked, storage, show)
    for outcome in failed:
        console.print(f"{outcome.job.name}: {outcome.error}", markup=False)
    if not rest:
        console.print("all runs are finished")
        return failed, False
    with _free_capacity(rest, launcher) as capacity:
        progress = Progress(table, rest, at_once or capacity, console, done, len(jobs) - len(rest))
        with progress, stop_on_signals(progress.print) as stop:
            outcomes = run_jobs(
                rest,
                storage,
                launcher=launcher,  # type: ignore[arg-type]
                max_concurrent_runs=at_once or capacity,
                stop=stop,
                on_event=progress.handle,
                on_outcome=progress.handle_outcome,
            )
    return [*failed, *outcomes], stop.is_set() and len(outcomes) < len(rest)


@contextmanager
def _free_capacity(jobs: list[Job], launcher: str) -> Iterator[int]:
    """The number of runs that fit at once; with Ray, all runs share one connection to the cluster."""
    if launcher == "local":
        yield 1
        return
    from kdcl_dist.launch.ray import driver

    with driver.cluster([job.recipe for job in jobs], lambda event: None):
        yield min(driver.max_concurrent_runs(job.recipe) for job in jobs)

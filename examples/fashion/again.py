"""Train cells of the tables again from nothing, and compare them with results.csv, to all its digits.

    python -m examples.fashion.again again docs/results/fashion none-seed3 dml_nano-seed1

The first folder is for the new runs. The exit code is 1 if a figure differs, and 2 if no table has a name.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Sequence
from pathlib import Path

from examples.fashion.analysis import RESULTS, results_of
from examples.fashion.run import HERE, say
from examples.fashion.tables import TABLES, planned
from kdcl_dist.compare.experiment import Job, jobs_of
from kdcl_dist.compare.runs import run_jobs
from kdcl_dist.errors import RecipeError, UserError
from kdcl_dist.launch.signals import stop_on_signals
from kdcl_dist.run.storage import Folder


def job_of(name: str) -> Job:
    """The run of a table with a name such as dml-seed0.

    Raises:
        RecipeError: no table has it.
    """
    for table in map(planned, TABLES):
        for arm in table.arms:
            for seed in table.seeds:
                if name == f"{arm.name}-seed{seed}":
                    return jobs_of(table.model_copy(update={"arms": [arm], "seeds": [seed]}), HERE)[0]
    raise RecipeError(f"{name}: no table has this run")


def differing(job: Job, again: Path, results: Path) -> list[str]:
    """The lines of results.csv that the new run has otherwise."""
    with (results / "results.csv").open(newline="") as file:
        rows = {tuple(row[name] for name in RESULTS) for row in csv.DictReader(file)}
    known = {row for row in rows if row[:2] == (job.arm, str(job.seed))}
    found = {tuple(map(str, row)) for row in results_of(job.arm, job.seed, Folder(str(again / job.name)))}
    return [",".join(row) for row in sorted(known ^ found)] or ([] if found else ["no result"])


def main(again: Path, results: Path, names: Sequence[str]) -> int:
    """Train the runs and compare them; returns how many differ."""
    jobs = [job_of(name) for name in names]
    with stop_on_signals(say) as stop:
        run_jobs(
            jobs,
            str(again),
            launcher="local",
            max_concurrent_runs=1,
            stop=stop,
            on_event=lambda job, event: None,
            on_outcome=lambda outcome: say(f"{outcome.job.name} {outcome.error or 'is trained'}"),
        )
    found = {job.name: differing(job, again, results) for job in jobs}
    for name, lines in found.items():
        print(f"{name}: equal" if not lines else "\n".join([f"{name} differs:", *lines]))
    return sum(map(bool, found.values()))


def command(arguments: Sequence[str]) -> int:
    """The exit code: 1 if a figure differs, and 2 after a line on arguments that cannot be used."""
    try:
        if len(arguments) < 3:
            raise RecipeError("give the folder for the new runs, that of results.csv, and names of runs")
        again, results, *names = arguments
        return int(main(Path(again), Path(results), names) > 0)
    except UserError as error:
        print(f"again: {error}", file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(command(sys.argv[1:]))

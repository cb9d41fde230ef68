"""Train all tables of this folder one after another, the most valuable first.

    OMP_NUM_THREADS=1 nice -n 19 python -m examples.fashion.run runs
    OMP_NUM_THREADS=1 python -m examples.fashion.run runs --at-once 2 --recorded docs/results/fashion

It is `kdcl compare` of each table, but with the first five seeds of all tables (H has no others) before the
other seeds of A and B. Started again it goes on: finished runs are skipped, stopped ones resume, failed ones
are repeated. Ctrl-C and SIGTERM stop it after a checkpoint. With `--recorded` it also goes on where the runs
of another machine ended, whose results are in that folder; table F needs networks, and trains those that are
not in `runs` again.
"""

from __future__ import annotations

import argparse
import csv
import time
from collections.abc import Collection, Sequence
from pathlib import Path
from threading import Event

from kdcl_dist.compare.experiment import Job, Table, jobs_of, load_table
from kdcl_dist.compare.runs import Outcome, run_jobs
from kdcl_dist.evaluation import evaluate_under_noise
from kdcl_dist.launch.signals import stop_on_signals

HERE = Path(__file__).parent
#: Tables in their order, each with the number of its first seeds; `f` is the noise on the runs of `a`.
STAGES = [
    *[(name, 5) for name in ("a", "b", "g50", "g1000", "a-views", "c", "d", "e", "f", "h")],
    *[(name, 10) for name in ("a", "b")],
]
#: The arms of table F, and the deviations of its noise; one draw on each of the 10,000 test images.
NOISY = ("none", "dml", "mean", "naive", "linear", "min_logit", "general")
DEVIATIONS = (0.05, 0.1, 0.15)


def recorded_runs(folder: Path) -> set[str]:
    """The names, such as dml-seed0, of the runs whose results are in results.csv of a folder."""
    with (folder / "results.csv").open(newline="") as file:
        return {f"{row['arm']}-seed{row['seed']}" for row in csv.DictReader(file)}


def say(text: str) -> None:
    """Print a line with the time."""
    print(f"{time.strftime('%d %b %H:%M:%S')}  {text}", flush=True)


def table_of(name: str, seeds: int) -> Table:
    """A table of this folder with its first seeds only."""
    table = load_table(HERE / f"{name}.yaml")
    return table.model_copy(update={"seeds": table.seeds[:seeds]})


def train(name: str, jobs: Sequence[Job], folder: Path, at_once: int, stop: Event) -> None:
    """Train runs of a table."""
    began, done = time.monotonic(), 0

    def tell(outcome: Outcome) -> None:
        nonlocal done
        done += 1
        found = {student: f"{values['top1']:.4f}" for student, values in (outcome.results or {}).items()}
        spent = time.monotonic() - began
        say(f"{name} {done}/{len(jobs)} after {spent:.0f} s: {outcome.job.name} {outcome.error or found}")

    run_jobs(
        jobs,
        str(folder),
        launcher="local",
        max_concurrent_runs=at_once,
        stop=stop,
        on_event=lambda job, event: None,
        on_outcome=tell,
    )


def test_under_noise(job: Job, folder: Path) -> None:
    """Write a run's `noise.csv` as `kdcl evaluate --noise` does, unless it is there."""
    target = folder / job.name / "noise.csv"
    if target.exists():
        return
    lines = ["deviation,repeat,student,loss,top1,top5"]
    tests = evaluate_under_noise(
        str(target.parent), DEVIATIONS, 1, device="cpu", warn=say, allow_imports=["examples.fashion.nets"]
    )
    for deviation, repeat, results in tests:
        lines += [
            f"{deviation:g},{repeat},{student},{v['loss']},{v['top1']},{v['top5']}"
            for student, v in results.items()
        ]
    target.write_text("".join(f"{line}\n" for line in lines))
    say(f"f: {job.name} under noise")


def main(storage: Path, stages: Sequence[tuple[str, int]], recorded: Collection[str], at_once: int) -> None:
    """Go through stages, without the runs that are recorded elsewhere."""
    with stop_on_signals(say) as stop:
        for name, seeds in stages:
            table = table_of("a" if name == "f" else name, seeds)
            jobs, folder = jobs_of(table, HERE), storage / table.name
            if name != "f":
                train(name, [job for job in jobs if job.name not in recorded], folder, at_once, stop)
                continue
            noisy = [job for job in jobs if job.arm in NOISY]
            train(name, noisy, folder, at_once, stop)
            for job in noisy:
                if not stop.is_set():
                    test_under_noise(job, folder)
    say("stopped" if stop.is_set() else "all tables are done")


def command() -> None:
    """Read the arguments."""
    parser = argparse.ArgumentParser(prog="python -m examples.fashion.run")
    parser.add_argument("runs", type=Path, help="folder of the runs")
    parser.add_argument("--tables", nargs="+", choices=dict(STAGES), help="these only, such as a g50")
    parser.add_argument("--recorded", type=Path, help="folder with results that are not made again")
    parser.add_argument("--at-once", type=int, default=1, help="runs that train at the same time")
    given = parser.parse_args()
    stages = [stage for stage in STAGES if given.tables is None or stage[0] in given.tables]
    main(
        given.runs, stages, set() if given.recorded is None else recorded_runs(given.recorded), given.at_once
    )


if __name__ == "__main__":
    command()

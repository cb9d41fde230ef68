"""Train all tables of this folder one after another, the most valuable first, on one core.

    nice -n 19 python -m examples.fashion.run runs

It is `kdcl compare` of each table, but with the first five seeds of all tables (H has no others) before the
other seeds of A and B. Started again it goes on: finished runs are skipped, stopped ones resume, failed ones
are repeated. Ctrl-C and SIGTERM stop it after a checkpoint.
"""

from __future__ import annotations

import sys
import time
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


def say(text: str) -> None:
    """Print a line with the time."""
    print(f"{time.strftime('%d %b %H:%M:%S')}  {text}", flush=True)


def table_of(name: str, seeds: int) -> Table:
    """A table of this folder with its first seeds only."""
    table = load_table(HERE / f"{name}.yaml")
    return table.model_copy(update={"seeds": table.seeds[:seeds]})


def train(name: str, seeds: int, storage: Path, stop: Event) -> None:
    """Train the runs of a table."""
    table = table_of(name, seeds)
    jobs = jobs_of(table, HERE)
    began, done = time.monotonic(), 0

    def tell(outcome: Outcome) -> None:
        nonlocal done
        done += 1
        found = {student: f"{values['top1']:.4f}" for student, values in (outcome.results or {}).items()}
        spent = time.monotonic() - began
        say(f"{name} {done}/{len(jobs)} after {spent:.0f} s: {outcome.job.name} {outcome.error or found}")

    run_jobs(
        jobs,
        str(storage / table.name),
        launcher="local",
        max_concurrent_runs=1,
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


def main(storage: Path) -> None:
    """Go through all stages."""
    with stop_on_signals(say) as stop:
        for name, seeds in STAGES:
            if name != "f":
                train(name, seeds, storage, stop)
                continue
            table = table_of("a", seeds)
            for job in jobs_of(table, HERE):
                if job.arm in NOISY and not stop.is_set():
                    test_under_noise(job, storage / table.name)
    say("stopped" if stop.is_set() else "all tables are done")


if __name__ == "__main__":
    main(Path(sys.argv[1]))

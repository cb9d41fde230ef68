"""Time from the command to the first step, relative to minimal scripts of Ray Train and of torch's launcher.

The baselines (`bare_ray.py`, `bare_processes.py`) train the same two networks on the same digits in as many
workers, with gloo. They have no coordinator, no checks and no run folder. A start ends when the last student
begins the backward pass of its first step. Each round measures all starts; the figures are medians.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import torch

from benchmarks.bare_training import MODELS
from benchmarks.figures import Figure
from benchmarks.first_step import FOLDER

__all__ = ["figures"]

STUDENTS = ", ".join(f"{{name: {name}, model: 'benchmarks.first_step:{name}'}}" for name in MODELS)
RECIPE = ["examples/digits.yaml", "--set", f"students=[{STUDENTS}]"]
RECIPE += ["--set", "data.augment=[]", "--set", "epochs=1"]
#: Commands without their last argument, the output folder.
COMMANDS = {
    "bare processes": ["-m", "benchmarks.bare_processes"],
    "kdcl, local launcher": ["-m", "kdcl_dist", "train", *RECIPE, "--launcher", "local", "--storage"],
    "bare Ray Train": ["-m", "benchmarks.bare_ray"],
    "kdcl, Ray": ["-m", "kdcl_dist", "train", *RECIPE, "--launcher", "ray", "--storage"],
}
LOCAL, ON_RAY = ("bare processes", "kdcl, local launcher"), ("bare Ray Train", "kdcl, Ray")
LIMIT_S = 240.0
GOAL = 1.3
#: Wait for the end of the processes of a command's Ray; otherwise the next command joins that Ray.
SETTLE_S = 5.0
#: Code that runs a Ray until its standard input closes.
HOLD = "import ray; ray.init(include_dashboard=False); print(ray.get_runtime_context().gcs_address); input()"


def start(name: str, notes: Path, variables: dict[str, str]) -> float:
    """Seconds from the start of a command to the first step of its last student."""
    for note in notes.iterdir():
        note.unlink()
    with tempfile.TemporaryDirectory() as folder:
        command, began = [sys.executable, *COMMANDS[name], folder], time.time()
        done = subprocess.run(
            command, env=os.environ | variables, capture_output=True, text=True, timeout=LIMIT_S
        )
    time.sleep(SETTLE_S)
    steps = [float(note.read_text()) for note in notes.iterdir()]
    if done.returncode or len(steps) != len(MODELS):
        raise RuntimeError(f"{name}: exit code {done.returncode}, {len(steps)} first steps\n{done.stderr}")
    return max(steps) - began


@contextlib.contextmanager
def running_ray(variables: dict[str, str]) -> Iterator[dict[str, str]]:
    """Run a Ray; yields the environment variables with which a command joins it."""
    # Otherwise this Ray demands a token that only the process which started it knows.
    variables = variables | {"RAY_AUTH_MODE": "disabled"}
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD],
        env=os.environ | variables,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    with holder:
        assert holder.stdout is not None
        yield variables | {"RAY_ADDRESS": holder.stdout.readline().strip()}
        holder.communicate("\n")


def measure(names: tuple[str, ...], rounds: int, *, running: bool = False) -> dict[str, float]:
    """Median seconds of each start; every round runs all commands one after another."""
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        variables = {FOLDER: folder, "PYTHONPATH": str(Path.cwd())}
        if running:
            variables = stack.enter_context(running_ray(variables))
        found = [[start(name, Path(folder), variables) for name in names] for _ in range(rounds)]
    return {name: median(column) for name, column in zip(names, zip(*found, strict=True), strict=True)}


def figures(quick: bool = False) -> list[Figure]:
    """The ratios of the speed table; `quick` leaves Ray out."""
    local = measure(LOCAL, 1)
    found = [Figure("start", "local launcher, 2 students", local[LOCAL[1]] / local[LOCAL[0]], GOAL)]
    if not quick:
        ray = measure(ON_RAY, 1)
        found.append(Figure("start", "Ray, 2 students", ray[ON_RAY[1]] / ray[ON_RAY[0]], GOAL))
    return found


def report(found: list[tuple[str, dict[str, float]]], rounds: int) -> str:
    """The results as Markdown."""
    lines = [
        "# From the command to the first step",
        "",
        "Seconds until the last of two students takes its first step (digits, `cnn_medium` and `cnn_small`,",
        "no augmentation), and of a minimal script that trains the same networks. Compare ratios.",
        f"{os.cpu_count()} cores ({platform.machine()}), no GPU, PyTorch {torch.__version__}, load",
        f"average {os.getloadavg()[1]:.1f} (5 minutes); medians of {rounds} alternating rounds.",
        "Made by `python -m benchmarks.startup`.",
        "",
        "| | bare s | kdcl s | ratio | goal |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for what, seconds in found:
        bare, ours = seconds.values()
        lines.append(f"| {what} | {bare:.1f} | {ours:.1f} | {ours / bare:.2f} | {GOAL} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure all starts, print the page, and write it to --out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    rounds = arguments.rounds
    found = [
        ("local launcher", measure(LOCAL, rounds)),
        ("Ray, started by the command", measure(ON_RAY, rounds)),
        ("Ray, started before", measure(ON_RAY, rounds, running=True)),
    ]
    page = report(found, rounds)
    print(page)
    if arguments.out:
        arguments.out.write_text(page)


if __name__ == "__main__":
    main()

"""Runs whose processes are killed at random, every few seconds, against the same runs undisturbed.

    python -m benchmarks.chaos --policy rollback --out docs/results/chaos-rollback.md
    python -m benchmarks.chaos --policy continue --seeds 3 --out docs/results/chaos-continue.md

The run's seed draws the victims from the students and the coordinator, and the times between deaths from an
exponential distribution. With `rollback` the weights of both runs of a seed must be equal bit for bit. With
`continue` no student's accuracy may fall by more than chance: the interval of the differences, paired by
seed, must contain zero or lie above it. Otherwise the exit code is 1.
"""

from __future__ import annotations

import argparse
import math
import os
import platform
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import torch

from kdcl_dist.config.recipe_file import load_recipe
from kdcl_dist.launch import local
from kdcl_dist.run.checkpoint import latest, read_part
from kdcl_dist.run.prepare import prepare
from kdcl_dist.run.record import read_record
from kdcl_dist.run.run import Run
from kdcl_dist.run.storage import Folder
from kdcl_dist.utils.intervals import Interval, mean_interval

RECIPE = "examples/digits.yaml"


@dataclass(frozen=True)
class Outcome:
    """The duration of a run, and its deaths: (seconds after the start, name of the process)."""

    folder: Folder
    seconds: float
    deaths: list[tuple[float, str]]


def train(run: Run, kills: int, every_s: float, seed: int) -> Outcome:
    """Train, and meanwhile kill `kills` processes with SIGKILL, `every_s` seconds apart on average."""
    cohort = local._Cohort(run, lambda event: None, threading.Event())
    over, deaths, began = threading.Event(), list[tuple[float, str]](), time.monotonic()

    def kill() -> None:
        dice = random.Random(seed)
        while len(deaths) < kills and not over.wait(dice.expovariate(1 / every_s)):
            if len(cohort.processes) <= len(run.recipe.workers):  # not all have been started yet
                continue
            victim = dice.choice(cohort.processes)
            if victim.finished is None and victim.handle.is_alive() and victim.handle.pid is not None:
                victim.handle.kill()
                deaths.append((time.monotonic() - began, victim.name))

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        assert cohort.train()
    finally:
        over.set()
        killer.join()
    return Outcome(run.folder, time.monotonic() - began, deaths)


def differ(left: Folder, right: Folder, names: list[str]) -> list[str]:
    """The students whose final weights differ in any bit."""
    manifests = [latest(folder, print) for folder in (left, right)]
    found = []
    for name in names:
        states = [read_part(f, m, name)["model"] for f, m in zip((left, right), manifests, strict=True) if m]
        if len(states) < 2 or any(not torch.equal(states[0][key], states[1][key]) for key in states[0]):
            found.append(name)
    return found


Pair = tuple[Outcome, Outcome]


def top1(outcome: Outcome, name: str) -> float:
    """Final test accuracy of a student in percent; NaN if the student was absent at the end."""
    results = read_record(outcome.folder)["results"]
    return 100 * results[name]["top1"] if name in results else math.nan


def gains(pairs: list[Pair], name: str) -> Interval:
    """Change of a student's accuracy by the deaths: the mean over seeds with its 95% interval."""
    return mean_interval([top1(stormy, name) - top1(quiet, name) for quiet, stormy in pairs])


def has_failed(policy: str, pairs: list[Pair], names: list[str]) -> bool:
    """Whether the runs break the policy's promise."""
    if policy == "rollback":
        return any(differ(quiet.folder, stormy.folder, names) for quiet, stormy in pairs)
    return any(gains(pairs, name).high < 0 for name in names)


def table(policy: str, pairs: list[Pair], names: list[str]) -> str:
    """The result in Markdown."""
    died = Counter(name for _, stormy in pairs for _, name in stormy.deaths)
    victims = ", ".join(f"{count} {name}" for name, count in sorted(died.items()))
    survived = sum(len(read_record(stormy.folder)["failures"]["causes"]) for _, stormy in pairs)
    quiet_s, stormy_s = (sum(pair[side].seconds for pair in pairs) for side in (0, 1))
    lines = [
        f"# Chaos, policy `{policy}`",
        "",
        f"`{RECIPE}`, local launcher, {os.cpu_count()} cores, load average {os.getloadavg()[2]:.0f}, PyTorch "
        f"{torch.__version__}, Python {platform.python_version()}. Made by "
        f"`python -m benchmarks.chaos {' '.join(sys.argv[1:])}`.",
        "",
        f"Seeds: {len(pairs)}; {died.total()} processes killed with SIGKILL ({victims}), {survived} failures "
        f"survived (deaths close together count as one); {quiet_s:.0f} s undisturbed, {stormy_s:.0f} s "
        "disturbed. A finished run loses no process, and under `continue` none waits for an absent student.",
        "",
        "| test top-1 %, means | undisturbed | disturbed | difference (95% interval) |",
        "| --- | ---: | ---: | ---: |",
    ]
    for name in [*names, "ensemble"]:
        means = [fmean(top1(pair[side], name) for pair in pairs) for side in (0, 1)]
        gain = gains(pairs, name)
        interval = "" if math.isnan(gain.low) else f" ({gain.low:+.2f} to {gain.high:+.2f})"
        lines.append(f"| {name} | {means[0]:.2f} | {means[1]:.2f} | {gain.value:+.2f}{interval} |")
    count = sum(bool(differ(quiet.folder, stormy.folder, names)) for quiet, stormy in pairs)
    same = "The final weights of all students are the same, bit for bit."
    lines += ["", same if not count else f"The final weights differ for {count} of {len(pairs)} seeds."]
    return "\n".join([*lines, *_absences(pairs)]) + "\n"


def _absences(pairs: list[Pair]) -> list[str]:
    rows = [
        f"| {seed} | {each['student']} | {each['since']} | {each['until']} | {each['state_of']} |"
        for seed, (_, stormy) in enumerate(pairs)
        for each in read_record(stormy.folder).get("absences", [])
    ]
    if not rows:
        return []
    titles = "| run | absent student | from step | to step | back with the state of step |"
    return ["", titles, "| ---: | --- | ---: | ---: | ---: |", *rows]


def pair_of(given: argparse.Namespace, folder: str, seed: int) -> Pair:
    """Both runs of one seed."""
    failure = [f"failure.policy={given.policy}", f"failure.max_failures={10 * given.kills}"]
    recipe = load_recipe(RECIPE, [*failure, f"epochs={given.epochs}", f"seed={seed}"])
    quiet, stormy = (
        prepare(recipe, folder, f"{name}-{seed}", resume=False, warn=print) for name in ("quiet", "stormy")
    )
    return train(quiet, 0, given.every, seed), train(stormy, given.kills, given.every, seed)


def main() -> int:
    """Train all pairs and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--policy", choices=["rollback", "continue"], default="rollback")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--every", type=float, default=6.0, help="mean seconds between two deaths")
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    names = load_recipe(RECIPE).names
    with tempfile.TemporaryDirectory() as folder:
        pairs = [pair_of(given, folder, seed) for seed in range(given.seeds)]
        text = table(given.policy, pairs, names)
        failed = has_failed(given.policy, pairs, names)
    print(text)
    if given.out is not None:
        given.out.write_text(text)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())

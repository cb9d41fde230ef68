"""A run whose processes die at random, every few seconds, against one that nobody disturbs.

    python -m benchmarks.chaos --policy rollback --out docs/results/chaos-rollback.md

Victims are drawn from the students and the coordinator, the times between deaths from an exponential
distribution, both by a seed. With `rollback` the weights of both runs must be equal bit for bit, else the
exit code is 1; with `continue` the table shows what the deaths cost.
"""

from __future__ import annotations

import argparse
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

import torch

from kdcl_dist.checkpoint import newest, read_part
from kdcl_dist.launch import local
from kdcl_dist.recipe_file import load_recipe
from kdcl_dist.runs import Run, prepare, read_record
from kdcl_dist.storage import Folder

RECIPE = "examples/digits.yaml"


@dataclass(frozen=True)
class Outcome:
    """What became of a run: seconds that it took, and who died after how many."""

    folder: Folder
    seconds: float
    deaths: list[tuple[float, str]]


def train(run: Run, kills: int, every_s: float, seed: int) -> Outcome:
    """Train, and meanwhile kill so many processes with SIGKILL, `every_s` seconds apart in the mean."""
    cast = local._Cast(run, lambda event: None, threading.Event())
    over, deaths, began = threading.Event(), list[tuple[float, str]](), time.monotonic()

    def kill() -> None:
        dice = random.Random(seed)
        while len(deaths) < kills and not over.wait(dice.expovariate(1 / every_s)):
            if len(cast.members) <= len(run.recipe.members):  # not all have been started yet
                continue
            victim = dice.choice(cast.members)
            if victim.finished is None and victim.process.is_alive() and victim.process.pid is not None:
                victim.process.kill()
                deaths.append((time.monotonic() - began, victim.name))

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        assert cast.train()
    finally:
        over.set()
        killer.join()
    return Outcome(run.folder, time.monotonic() - began, deaths)


def differ(left: Folder, right: Folder, names: list[str]) -> list[str]:
    """The students whose final weights are not the same, bit for bit."""
    manifests = [newest(folder, print) for folder in (left, right)]
    found = []
    for name in names:
        states = [read_part(f, m, name)["model"] for f, m in zip((left, right), manifests, strict=True) if m]
        if len(states) < 2 or any(not torch.equal(states[0][key], states[1][key]) for key in states[0]):
            found.append(name)
    return found


def table(policy: str, quiet: Outcome, stormy: Outcome, names: list[str]) -> str:
    """The result in Markdown."""
    causes = read_record(stormy.folder)["failures"]["causes"]
    died = Counter(name for _, name in stormy.deaths)
    victims = ", ".join(f"{count} {name}" for name, count in sorted(died.items()))
    apart = differ(quiet.folder, stormy.folder, names)
    lines = [
        f"# Chaos, policy `{policy}`",
        "",
        f"`{RECIPE}`, local launcher, {os.cpu_count()} cores, PyTorch {torch.__version__}, Python "
        f"{platform.python_version()}. Made by `python -m benchmarks.chaos {' '.join(sys.argv[1:])}`.",
        "",
        f"{len(stormy.deaths)} processes killed with SIGKILL ({victims}), {len(causes)} failures survived; "
        f"{quiet.seconds:.0f} s undisturbed, {stormy.seconds:.0f} s disturbed.",
        "",
        "| test top-1 % | undisturbed | disturbed |",
        "| --- | ---: | ---: |",
    ]
    results = [read_record(each.folder)["results"] for each in (quiet, stormy)]
    for name in [*names, "ensemble"]:
        shown = [f"{100 * result[name]['top1']:.2f}" if name in result else "away" for result in results]
        lines.append(f"| {name} | {shown[0]} | {shown[1]} |")
    same = "The final weights of all students are the same, bit for bit."
    lines += ["", same if not apart else f"The final weights differ: {', '.join(apart)}."]
    missed = read_record(stormy.folder).get("absences", [])
    if missed:
        lines += [
            "",
            "| away | from step | to step | back with the state of step |",
            "| --- | ---: | ---: | ---: |",
        ]
        lines += [f"| {m['student']} | {m['since']} | {m['until']} | {m['state_of']} |" for m in missed]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Run both and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--policy", choices=["rollback", "continue"], default="rollback")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--every", type=float, default=6.0, help="seconds between two deaths, in the mean")
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    options = [
        f"failure.policy={given.policy}",
        f"failure.max_failures={10 * given.kills}",
        f"epochs={given.epochs}",
    ]
    recipe = load_recipe(RECIPE, options)
    with tempfile.TemporaryDirectory() as folder:
        runs = [prepare(recipe, folder, name, resume=False, warn=print) for name in ("quiet", "stormy")]
        quiet = train(runs[0], 0, given.every, given.seed)
        stormy = train(runs[1], given.kills, given.every, given.seed)
        text = table(given.policy, quiet, stormy, recipe.names)
        failed = given.policy == "rollback" and bool(differ(quiet.folder, stormy.folder, recipe.names))
    print(text)
    if given.out is not None:
        given.out.write_text(text)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())

"""Effective training time of a run whose students are killed every few seconds.

    python -m benchmarks.effective_time --out docs/results/effective-time.md

A run without kills and runs with them train the same epochs of `examples/digits.yaml` in turn, with the local
launcher. The share is the time without kills by that with them, from the first step that all students can
take to the run's end. Their weights must be equal, bit for bit.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.conditions import conditions
from benchmarks.soak.check import differing_students
from kdcl_dist.config.recipe_file import load_recipe
from kdcl_dist.launch import local
from kdcl_dist.run.events import Event, Started
from kdcl_dist.run.prepare import prepare
from kdcl_dist.run.storage import Folder
from kdcl_dist.utils.intervals import mean_interval

RECIPE = "examples/digits.yaml"
#: Steps from one checkpoint in memory to the next; 0: a rollback goes to the last epoch's end.
IN_MEMORY = (0, 5)


@dataclass
class Kills:
    """Kills a random student every so many seconds, from the first start of the cohort on.

    Attributes:
        count: of those that were sent.
        began: when the cohort was complete for the first time; seconds of the monotonic clock.
    """

    every_s: float
    seed: int
    count: int = 0
    began: float | None = None
    _pids: list[int] = field(default_factory=list)
    _done: threading.Event = field(default_factory=threading.Event)

    def on_event(self, event: Event) -> None:
        """Note the processes of the cohort."""
        if isinstance(event, Started):
            self._pids = [int(worker["pid"]) for worker in event.placement.values()]
            self.began = self.began or time.monotonic()

    def send(self) -> None:
        """Send them until `end`."""
        choose = random.Random(self.seed)
        while not self._done.wait(self.every_s):
            if self._pids:
                victim = choose.choice(self._pids)
                try:
                    os.kill(victim, signal.SIGKILL)
                except ProcessLookupError:  # it has just ended
                    continue
                self.count += 1

    def end(self) -> None:
        """Send no more."""
        self._done.set()


def train(folder: Path, epochs: int, every_s: float | None, in_memory: int, seed: int) -> tuple[float, int]:
    """Train once; seconds from the first start of the cohort to the end, and the number of kills."""
    settings = [f"epochs={epochs}", "failure.policy=rollback", "failure.max_failures=1000"]
    recipe = load_recipe(RECIPE, [*settings, f"checkpoint.in_memory_every_steps={in_memory}"])
    run = prepare(recipe, str(folder), "run", resume=False, warn=print)
    kills = Kills(every_s or 0.0, seed)
    sender = threading.Thread(target=kills.send)
    if every_s is not None:
        sender.start()
    try:
        local.launch(run, kills.on_event, threading.Event())
        ended = time.monotonic()
    finally:
        kills.end()
        if every_s is not None:
            sender.join()
    assert kills.began is not None
    if every_s is not None and not kills.count:
        raise SystemExit(f"no student was killed within {ended - kills.began:.0f} s: give more --epochs")
    return ended - kills.began, kills.count


def measure(rounds: int, epochs: int, every_s: float) -> tuple[list[str], bool]:
    """The rows of the table, and whether all weights are equal."""
    shares: dict[int, list[float]] = {each: [] for each in IN_MEMORY}
    lost: dict[int, list[float]] = {each: [] for each in IN_MEMORY}
    kills, equal = dict.fromkeys(IN_MEMORY, 0), True
    for number in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            quiet = Path(folder) / "quiet"
            quiet_s, _ = train(quiet, epochs, None, 0, number)
            for each in IN_MEMORY:
                stormy = Path(folder) / str(each)
                stormy_s, count = train(stormy, epochs, every_s, each, number)
                one, other = (Folder(str(path / "run")) for path in (quiet, stormy))
                equal &= not differing_students(one, other, load_recipe(RECIPE).names)
                kills[each] += count
                shares[each].append(100 * quiet_s / stormy_s)
                lost[each].append((stormy_s - quiet_s) / count)
                print(number, each, f"{quiet_s:.1f} s, {stormy_s:.1f} s, {count} kills", flush=True)
    rows = []
    for each in IN_MEMORY:
        share, cost = (mean_interval(values) for values in (shares[each], lost[each]))
        figures = f"{share.value:.1f} ± {share.half_width:.1f} | {cost.value:.2f} ± {cost.half_width:.2f}"
        rows.append(f"| {each or 'none'} | {kills[each]} | {figures} |")
    return rows, equal


def main() -> int:
    """Measure, print the page, and write it to --out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=200)
    parser.add_argument("--every", type=float, default=6.6, help="seconds from one kill to the next")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    rows, equal = measure(given.rounds, given.epochs, given.every)
    how = f"{given.rounds} rounds of {given.epochs} epochs, a student killed every {given.every:g} s"
    verdict = "All weights are those of the run without kills, bit for bit." if equal else "Weights differ."
    lines = [
        "# Effective training time with a kill every few seconds",
        "",
        f"{verdict} Time without kills by time with them, both from the first start of the cohort to",
        "the run's end, in the same round; means with 95% intervals.",
        "",
        "| steps from one checkpoint in memory to the next | kills | effective time % | s lost a kill |",
        "| --- | ---: | ---: | ---: |",
        *rows,
        "",
        *conditions("effective_time", how),
    ]
    print("\n".join(lines))
    if given.out:
        given.out.write_text("\n".join(lines) + "\n")
    return 0 if equal else 1


if __name__ == "__main__":
    sys.exit(main())

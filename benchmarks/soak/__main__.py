"""Runs that meet a fault in each epoch, against the same runs without any.

    python -m benchmarks.soak FOLDER --faults 2000 --out docs/results/soak.md
    python -m benchmarks.soak FOLDER --faults 200 --launcher ray --out docs/results/soak-ray.md
    python -m benchmarks.soak FOLDER --faults 100 --policy continue --seeds 5 \\
        --out docs/results/soak-continue.md

Under `rollback` the weights of all students must be equal bit for bit. Under `continue` no student's accuracy
may fall by more than chance: the interval of the changes, paired by seed, must contain zero or lie above it.
Nothing may be left: no process, no shared memory, no half-written file. Otherwise the exit code is 1. All
state is in FOLDER: the same command goes on with a soak that was interrupted. The times of all faults are
written beside the page, as CSV.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.soak.check import accuracies, differing_students, leftovers
from benchmarks.soak.faults import draw
from benchmarks.soak.page import accuracy_table, change_of, page, remains, verdict
from benchmarks.soak.run import RECIPE, Soak, SoakFailed
from benchmarks.soak.timeline import Outcome, as_csv, duration_s, outcomes, process_ids
from kdcl_dist.config.recipe_file import load_recipe

#: Digits of a class that are trained on, and samples a step: few under `continue`, so that a student that was
#: away is back before the next fault, an epoch later.
PER_CLASS, BATCH = 64, {"rollback": 64, "continue": 16}
OVERRIDES = (
    f"data.train_per_class={PER_CLASS}",
    "students.small.replicas=2",
    "limits.step_s=10",
    "failure.max_bad_steps=0",
)
#: Epochs without faults at the end under `continue`, in which a student that was away comes back.
QUIET_EPOCHS = 20
#: Seconds without any event after which a run counts as hanging: no limit of the recipe is as long.
HANGS_S = 600.0
#: Seconds after which Ray's own agents have ended whose raylet was killed: they wait for a minute.
RAY_ENDS_S = 90.0


@dataclass(frozen=True)
class Pair:
    """The two runs of one seed.

    Attributes:
        quiet, stormy: the run without faults, and the one with them.
        outcomes: of the faults that happened.
        left: what the run with faults left behind.
    """

    quiet: Soak
    stormy: Soak
    outcomes: list[Outcome]
    left: list[str]


def overrides_of(given: argparse.Namespace, seed: int) -> list[str]:
    """What both runs of a seed change in the recipe."""
    failure = [f"failure.policy={given.policy}", f"failure.max_failures={10 * given.faults}"]
    epochs = given.faults + (QUIET_EPOCHS if given.policy == "continue" else 0)
    own = [f"batch_size={BATCH[given.policy]}", f"epochs={epochs}", f"seed={seed}"]
    if given.policy == "continue":  # its accuracy counts, so that it learns to its end
        milestones = [epochs * 6 // 10, epochs * 17 // 20]
        own += [f"students.{name}.schedule.milestones={milestones}" for name in load_recipe(RECIPE).names]
        own.append("students.mlp.optimizer.lr=0.01")  # the recipe's is too much for so few samples a step
    return [*OVERRIDES, *failure, *own]


def train_pair(given: argparse.Namespace, seed: int) -> Pair:
    """Train both runs of a seed, or what is missing of them."""
    overrides = overrides_of(given, seed)
    recipe = load_recipe(RECIPE, overrides)
    steps_per_epoch = 10 * PER_CLASS // recipe.batch_size
    faults = draw(given.faults, seed, [worker.name for worker in recipe.workers], steps_per_epoch)
    folder = given.folder.absolute() / str(seed)
    stormy = Soak(folder / "disturbed", faults, given.launcher, overrides, HANGS_S)
    quiet = Soak(folder / "undisturbed", [], "local", overrides, HANGS_S)
    for soak in (stormy, quiet):
        soak.train()
    events = stormy.events.read()
    deadline = time.monotonic() + (RAY_ENDS_S if given.launcher == "ray" else 0.0)
    while left := leftovers(stormy.folder, stormy.temporary, process_ids(events)):
        if time.monotonic() > deadline:
            break
        time.sleep(1.0)
    for soak in (stormy, quiet):
        soak.tidy()
    return Pair(quiet, stormy, outcomes(faults, stormy.folder, events), left)


def cost(pairs: list[Pair]) -> str:
    """How long the runs took, in a sentence."""
    quiet_s = sum(duration_s(pair.quiet.events.read()) for pair in pairs)
    stormy_s = sum(duration_s(pair.stormy.events.read()) for pair in pairs)
    count = sum(len(pair.outcomes) for pair in pairs)
    each = f": {(stormy_s - quiet_s) / count:.2f} s a fault, with what was trained again" if count else ""
    return f"The training took {stormy_s:.0f} s with the faults and {quiet_s:.0f} s without{each}."


def judge_rollback(pairs: list[Pair], names: list[str]) -> tuple[list[str], bool]:
    """What was lost, in lines, and whether that is nothing."""
    lines, kept = list[str](), True
    for pair in pairs:
        differ = differing_students(pair.quiet.run, pair.stormy.run, names)
        lines.append(verdict(differ, pair.left))
        kept &= not differ and not pair.left
    return lines, kept


def judge_continue(pairs: list[Pair], names: list[str]) -> tuple[list[str], bool]:
    """As `judge_rollback`."""
    rows = {
        name: (
            accuracies([pair.quiet.run for pair in pairs], name),
            accuracies([pair.stormy.run for pair in pairs], name),
        )
        for name in [*names, "ensemble"]
    }
    left = [each for pair in pairs for each in pair.left]
    falls = any(change_of(*rows[name]).high < 0 for name in names)
    steps = 10 * PER_CLASS // BATCH["continue"]
    seeds = f"{len(pairs)} seeds, a fault in each epoch of {steps} steps but the last {QUIET_EPOCHS}. "
    return [seeds + remains(left), "", *accuracy_table(rows)], not falls and not left


def main() -> int:
    """Train the runs with faults and those without, compare them, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--faults", type=int, default=2000, help="of each seed")
    parser.add_argument("--policy", choices=["rollback", "continue"], default="rollback")
    parser.add_argument("--seed", type=int, default=0, help="the first seed")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--launcher", choices=["local", "ray"], default="local")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    for number in (signal.SIGINT, signal.SIGTERM):  # also in the background, where a shell ignores Ctrl-C
        signal.signal(number, signal.default_int_handler)
    seeds = range(given.seed, given.seed + given.seeds)
    pairs = {seed: train_pair(given, seed) for seed in seeds}
    judge = judge_rollback if given.policy == "rollback" else judge_continue
    verdicts, kept = judge([*pairs.values()], load_recipe(RECIPE).names)
    if given.launcher == "local":  # as that of the runs without faults
        verdicts += ["", cost([*pairs.values()])]
    settings = f"--faults {given.faults} --policy {given.policy} --seed {given.seed} --seeds {given.seeds}"
    found = [outcome for pair in pairs.values() for outcome in pair.outcomes]
    text = page(
        f"under `{given.policy}`, launcher `{given.launcher}`",
        f"soak FOLDER {settings} --launcher {given.launcher}",
        given.faults * given.seeds,
        found,
        verdicts,
    )
    print(text)
    if given.out is not None:
        given.out.write_text(text)
        given.out.with_suffix(".csv").write_text(as_csv({s: pair.outcomes for s, pair in pairs.items()}))
    return int(not kept)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except SoakFailed as error:
        sys.exit(f"soak: {error}")
    except KeyboardInterrupt:
        sys.exit("soak: interrupted; the same command goes on")

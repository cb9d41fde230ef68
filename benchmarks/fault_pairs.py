"""Two faults at once, and a second fault in each phase of a recovery: every pair, and what followed.

    python -m benchmarks.fault_pairs FOLDER --out docs/results/fault-pairs.md
    python -m benchmarks.fault_pairs FOLDER --every 11 --launcher ray --out docs/results/fault-pairs-ray.md

A student, the coordinator or the launching process is killed, or stopped, which looks like a hang. One run
meets a pair in each epoch, like a soak (`benchmarks.soak`); after the launcher's death it is resumed. It must
go on after each pair, and end with the weights of an undisturbed run (`rollback`) or at all (`continue`).
Otherwise the exit code is 1. All state is in FOLDER: the same command goes on where it was interrupted.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, product
from pathlib import Path

from benchmarks.conditions import conditions
from benchmarks.soak.check import differing_students, leftovers
from benchmarks.soak.faults import COORDINATOR, LAUNCHER_KILLED, LAUNCHER_STOPPED, Fault
from benchmarks.soak.page import remains, verdict
from benchmarks.soak.run import RECIPE, STOPPED_S, Soak, SoakFailed
from benchmarks.soak.timeline import Event, process_ids
from kdcl_dist.config.recipe_file import load_recipe

STEP_S, STARTUP_S = 5, 60
OVERRIDES = (
    "data.train_per_class=64",
    "batch_size=64",
    f"limits={{step_s: {STEP_S}, startup_s: {STARTUP_S}}}",
)
STEPS_PER_EPOCH = 10
#: The step of an epoch at which the first fault happens; all go back to the epoch's first one.
STEP = 4
#: Seconds without any event after which a run counts as hanging: some limits of the recipe, one by one.
HANGS_S = 5.0 * STARTUP_S
#: Epochs without faults at the end, in which all are back.
QUIET_EPOCHS = 5
LAUNCHER, WITNESS = "launcher", "large"
#: Where a process is at the first fault; the launcher meets its fault when the third student is there.
PLACES = {"small": "forward", "mlp": "forward", COORDINATOR: "gather", LAUNCHER: "forward"}
STUDENT = ("start", "data", "forward", "gather", "broadcast", "backward")
#: The phases of the first step after a recovery, and before it.
RECOVERY = {
    "small": STUDENT,
    "mlp": STUDENT,
    COORDINATOR: ("start", "gather", "ensemble", "broadcast", "record"),
    LAUNCHER: STUDENT,
}
HOWS = ("kill", "stop")
OF_LAUNCHER = {"kill": LAUNCHER_KILLED, "stop": LAUNCHER_STOPPED}
#: Two faults, with the steps of the first epoch.
FaultPair = tuple[Fault, Fault]


def fault(who: str, phase: str, step: int, how: str, after: int | None = None) -> Fault:
    """A fault of a pair, without its number; arguments as of `Fault`, but that `who` may be the launcher."""
    if who == LAUNCHER:
        return Fault(0, WITNESS, phase, step, OF_LAUNCHER[how], after)
    return Fault(0, who, phase, step, how, after)


def at_once() -> Iterator[FaultPair]:
    """Both faults in the same step."""
    for (one, other), hows in product(combinations(PLACES, 2), product(HOWS, HOWS)):
        yield fault(one, PLACES[one], STEP, hows[0]), fault(other, PLACES[other], STEP, hows[1])


def in_recovery(policy: str) -> Iterator[FaultPair]:
    """The second fault while the cohort recovers from a killed student or coordinator."""
    for killed, how in product(("small", COORDINATOR), HOWS):
        first = fault(killed, PLACES[killed], STEP, "kill")
        # Under `continue` the others of a dead student go on where they are.
        at = STEP if (policy, killed) == ("continue", "small") else 0
        anew = [WITNESS] if killed == COORDINATOR else []
        places = [(who, phase, at) for who, phases in RECOVERY.items() for phase in phases]
        places += [(who, "start", -1) for who in ("small", *(["mlp", LAUNCHER] if anew else []))]
        places.append((COORDINATOR, "start", -1 if anew else STEP))
        yield from ((first, fault(*place, how, 0)) for place in dict.fromkeys(places))


def numbered(pairs: Sequence[FaultPair]) -> list[Fault]:
    """The faults of all pairs, one pair an epoch; a step of -1 is 0: of a process before its first step."""
    faults = []
    for epoch, (one, other) in enumerate(pairs):
        first, begins = 2 * epoch, epoch * STEPS_PER_EPOCH
        faults.append(replace(one, number=first, step=begins + one.step))
        step = 0 if other.step < 0 else begins + other.step
        after = None if other.after is None else first
        faults.append(replace(other, number=first + 1, step=step, after=after))
    return faults


@dataclass(frozen=True)
class Followed:
    """What followed a pair of faults.

    Attributes:
        pair: the two faults.
        met: whether each happened.
        on_s: seconds from the first fault to the last generation before the next checkpoint; None without.
        failures: that the coordinator reported meanwhile.
        wrong: how the run hung, or ended by itself.
    """

    pair: tuple[Fault, Fault]
    met: tuple[bool, bool]
    on_s: float | None
    failures: int
    wrong: list[str]


def follow(soak: Soak, wrong: list[Event]) -> list[Followed]:
    """What followed each pair of a run."""
    pairs = [*zip(soak.faults[::2], soak.faults[1::2], strict=True)]
    markers = [[each.marker(soak.folder) for each in pair] for pair in pairs]
    began = [min([m.stat().st_mtime for m in both if m.exists()], default=None) for both in markers]
    ends = [next((t for t in began[i + 1 :] if t is not None), float("inf")) for i in range(len(pairs))]
    found = []
    for pair, both, since, until in zip(pairs, markers, began, ends, strict=True):
        met = both[0].exists(), both[1].exists()
        if since is None:
            found.append(Followed(pair, met, None, 0, []))
            continue
        later = [e for e in soak.events.read() if since <= e["time"] < until]
        own = [str(e["text"]) for e in wrong if since <= e["time"] < until]
        failures = sum(event["kind"] == "failure" for event in later)
        found.append(Followed(pair, met, _on_s(later, since), failures, own))
    return found


def _on_s(later: list[Event], since: float) -> float | None:
    saved = next((i for i, event in enumerate(later) if event["kind"] == "checkpoint"), len(later))
    starts = [event["time"] for event in later[:saved] if event["kind"] == "started"]
    return starts[-1] - since if starts else None


def train(soak: Soak) -> list[Event]:
    """Train to the end; where the run hangs or ends by itself, note that and go on.

    Returns:
        How often that was, with time and text.

    Raises:
        SoakFailed: it happened twice without another fault.
    """
    path = soak.folder / "wrong.jsonl"
    while True:
        before = soak.met
        try:
            soak.train()
        except SoakFailed as error:
            last = (soak.folder / "output.log").read_text().rstrip().rpartition("\n")[2]
            with path.open("a") as file:
                file.write(json.dumps({"time": time.time(), "text": f"{error}: {last}"}) + "\n")
            if soak.met == before:
                raise
        else:
            return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def row(found: Followed) -> str:
    """A line of the table."""
    names = [describe(each) for each in found.pair]
    unmet = [name for name, met in zip(names, found.met, strict=True) if not met]
    said = "; ".join(found.wrong).replace("|", "\\|") or "as promised"  # the log has "name | line"
    said += f", not met: {' and '.join(unmet)}" if unmet else ""
    on = "" if found.on_s is None else f"{found.on_s:.2f}"
    return f"| {names[0]} | {names[1]} | {said} | {on} | {found.failures} |"


def describe(each: Fault) -> str:
    """A fault in words: who, how and where."""
    is_early = each.after is not None and each.step == 0
    where = "before its first step" if is_early else each.phase
    who = {LAUNCHER_KILLED: "launcher kill", LAUNCHER_STOPPED: "launcher stop"}
    return f"{who.get(each.how, f'{each.who} {each.how}')} ({where})"


def main() -> int:
    """Train the run with all pairs and the one without, print the table, and write it to --out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--policy", choices=["rollback", "continue"], default="rollback")
    parser.add_argument("--launcher", choices=["local", "ray"], default="local")
    parser.add_argument("--every", type=int, default=1, help="only one pair in so many")
    parser.add_argument("--count", type=int, help="only the first so many")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    for number in (signal.SIGINT, signal.SIGTERM):  # also in the background, where a shell ignores Ctrl-C
        signal.signal(number, signal.default_int_handler)
    stormy, quiet = both_runs(given)
    wrong = train(stormy)
    quiet.train()
    left = leftovers(stormy.folder, stormy.temporary, process_ids(stormy.events.read()))
    names = load_recipe(RECIPE).names if given.policy == "rollback" else []
    differ = differing_students(quiet.run, stormy.run, names) if names else []
    text = page(given, follow(stormy, wrong), len(wrong), verdict(differ, left) if names else remains(left))
    print(text)
    if given.out is not None:
        given.out.write_text(text)
    for soak in (stormy, quiet):
        soak.tidy()
    return int(bool(wrong or differ or left))


def both_runs(given: argparse.Namespace) -> tuple[Soak, Soak]:
    """The run with the pairs, and the one without."""
    pairs = [*at_once(), *in_recovery(given.policy)][:: given.every][: given.count]
    failure = f"failure={{policy: {given.policy}, max_failures: {10 * len(pairs)}}}"
    overrides = [*OVERRIDES, failure, f"epochs={len(pairs) + QUIET_EPOCHS}"]
    folder = given.folder.absolute()
    return (
        Soak(folder / "disturbed", numbered(pairs), given.launcher, overrides, HANGS_S),
        Soak(folder / "undisturbed", [], "local", overrides, HANGS_S),
    )


def page(given: argparse.Namespace, found: list[Followed], wrong: int, result: str) -> str:
    """The page in Markdown."""
    settings = (
        f"--every {given.every} --count {len(found)} --policy {given.policy} --launcher {given.launcher}"
    )
    limits = (
        f"limits.step_s {STEP_S}, limits.startup_s {STARTUP_S}; the launcher is stopped for {STOPPED_S:g} s"
    )
    lines = [
        f"# Two faults: at once, and in each phase of a recovery, `{given.policy}`",
        "",
        f"{len(found)} pairs in one run of three students; {wrong} times the run hung or ended by itself. "
        f"{result}",
        "",
        *conditions(f"fault_pairs FOLDER {settings}", limits),
        "",
        "The fourth column has the seconds from the first fault to the last new group before the next "
        "checkpoint, as the launching process noted them: none where it was stopped or dead meanwhile.",
        "",
        "| first fault | second fault | outcome | goes on, s | failures |",
        "| --- | --- | --- | ---: | ---: |",
        *map(row, found),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    try:
        sys.exit(main())
    except SoakFailed as error:
        sys.exit(f"fault_pairs: {error}")
    except KeyboardInterrupt:
        sys.exit("fault_pairs: interrupted; the same command goes on")

"""Two faults at once, and a second fault in each phase of a recovery: every pair, and how each run ends.

    python -m benchmarks.fault_pairs --out docs/results/fault-pairs.md

The faults are those of the tests (`tests/support/inject`), and of the launching process: it is killed, or
stopped for a while. A run whose launcher was killed is resumed. Under `rollback` the weights must equal those
of an undisturbed run bit for bit; under `continue` the run must end. Otherwise, or if a run hangs, the exit
code is 1.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import combinations, product
from pathlib import Path

from benchmarks.chaos import differ
from benchmarks.conditions import conditions
from kdcl_dist.config.recipe_file import load_recipe
from kdcl_dist.run.record import read_record
from kdcl_dist.run.storage import Folder

RECIPE = "examples/digits.yaml"
STEP_S, STARTUP_S = 5, 60
#: Ten steps an epoch; the first fault is in the second one, so that all go back to step 10.
OVERRIDES = (
    "data.train_per_class=64",
    "epochs=3",
    "failure.max_failures=20",
    f"limits={{step_s: {STEP_S}, startup_s: {STARTUP_S}}}",
)
STEP, CHECKPOINT = 14, 10
LAUNCHER = "launcher"
#: Seconds for which the launching process is stopped, and after which a run counts as hanging.
STOPPED_S, HANGS_S = 8.0, 300.0
POLL_S = 0.005
#: Where a process is when the second fault meets it, from the first fault on: its phase and step.
RECOVERY = {
    "small": [
        ("start", 0),
        *((phase, CHECKPOINT) for phase in ("start", "data", "forward", "gather", "backward")),
    ],
    "mlp": [(phase, CHECKPOINT) for phase in ("start", "data", "forward", "gather", "backward")],
    "coordinator": [(phase, CHECKPOINT) for phase in ("start", "gather", "ensemble", "broadcast", "record")],
}


@dataclass(frozen=True)
class Fault:
    """What a process meets as it enters a phase of a step; `how` is kill or stop.

    The launcher meets its fault with the other one.
    """

    who: str
    phase: str
    step: int
    how: str

    def __str__(self) -> str:
        where = "" if self.who == LAUNCHER else f" ({self.phase} {self.step})"
        return f"{self.who} {self.how}{where}"


def at_once() -> Iterator[tuple[Fault, Fault]]:
    """Both faults in the same step."""
    places = {"small": "forward", "mlp": "forward", "coordinator": "gather", LAUNCHER: ""}
    for (one, other), hows in product(combinations(places, 2), product(("kill", "stop"), repeat=2)):
        yield Fault(one, places[one], STEP, hows[0]), Fault(other, places[other], STEP, hows[1])


def in_recovery() -> Iterator[tuple[Fault, Fault]]:
    """The second fault while the cohort recovers from a killed student or coordinator."""
    for first in (Fault("small", "forward", STEP, "kill"), Fault("coordinator", "gather", STEP, "kill")):
        for who, how in product(RECOVERY, ("kill", "stop")):
            yield from ((first, Fault(who, phase, step, how)) for phase, step in RECOVERY[who])


class Attempt:
    """One run that meets two faults.

    Args:
        folder: of all its files.
        faults: the first, and the second.
        successive: whether the second waits for the first.
        policy: of the recipe.
    """

    def __init__(self, folder: Path, faults: tuple[Fault, ...], successive: bool, policy: str) -> None:
        self.folder, self.faults = folder, faults
        lines = [self._line(n, fault, successive) for n, fault in enumerate(faults) if fault.who != LAUNCHER]
        (folder / "faults.jsonl").write_text("\n".join(lines))
        self.overrides = [*OVERRIDES, f"failure.policy={policy}"]
        self.of_launcher = next((fault for fault in faults if fault.who == LAUNCHER), None)

    def _line(self, number: int, fault: Fault, successive: bool) -> str:
        after = str(self._met(0)) if successive and number else ""
        return json.dumps(
            asdict(fault) | {"nth": 1, "once": str(self._met(number)), "after": after, "until": ""}
        )

    def _met(self, number: int) -> Path:
        return self.folder / f"met-{number}"

    def train(self) -> int:
        """Train to the end; returns the exit code, or -1 if the run hangs."""
        process, deadline = self._start(), time.monotonic() + HANGS_S
        try:
            while process.poll() is None and time.monotonic() < deadline:
                if self.of_launcher is not None and self._met(0).exists():
                    how, self.of_launcher = self.of_launcher.how, None
                    process = self._meet(process, how)
                time.sleep(POLL_S)
            return -1 if process.poll() is None else process.returncode
        finally:
            process.kill()
            process.wait()

    def _meet(self, process: subprocess.Popen[bytes], how: str) -> subprocess.Popen[bytes]:
        """Kill the launching process and start its successor, or stop it for a while."""
        if how == "stop":
            process.send_signal(signal.SIGSTOP)
            time.sleep(STOPPED_S)
            process.send_signal(signal.SIGCONT)
            return process
        process.kill()
        process.wait()
        return self._start("--resume")

    def _start(self, *more: str) -> subprocess.Popen[bytes]:
        paths = [str(Path("tests/support/inject").absolute()), str(Path.cwd())]
        environment = os.environ | {
            "KDCL_TEST_FAULTS": str(self.folder / "faults.jsonl"),
            "PYTHONPATH": os.pathsep.join(paths),
            "CUDA_VISIBLE_DEVICES": "",
        }
        sets = [word for override in self.overrides for word in ("--set", override)]
        command = [
            sys.executable,
            "-m",
            "kdcl_dist",
            "train",
            RECIPE,
            "--launcher",
            "local",
            "--storage",
            str(self.folder),
        ]
        with (self.folder / "output.log").open("a") as log:
            return subprocess.Popen(
                [*command, "--name", "run", *sets, *more],
                env=environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    @property
    def run(self) -> Folder:
        """The run folder."""
        return Folder(str(self.folder)) / "run"

    @property
    def last_line(self) -> str:
        """What the run said last."""
        return (self.folder / "output.log").read_text().rstrip().rpartition("\n")[2]

    @property
    def unmet(self) -> list[str]:
        """The faults that no process has met."""
        own = [(n, fault) for n, fault in enumerate(self.faults) if fault.who != LAUNCHER]
        return [str(fault) for n, fault in own if not self._met(n).exists()]


def outcome(attempt: Attempt, policy: str, undisturbed: Folder) -> tuple[str, bool]:
    """How a run ended, in words, and whether that is as promised."""
    began = time.monotonic()
    code = attempt.train()
    took = f"{time.monotonic() - began:.0f} s"
    if code == -1:
        return f"hangs: {attempt.last_line}", False
    if code:
        return f"exit code {code} after {took}: {attempt.last_line}", False
    failures = len(read_record(attempt.run).get("failures", {}).get("causes", ()))
    said = f"{took}, {failures} failures" + "".join(f", not met: {each}" for each in attempt.unmet)
    if policy == "rollback" and (students := differ(undisturbed, attempt.run, load_recipe(RECIPE).names)):
        return f"other weights of {', '.join(students)}", False
    return said, True


def main() -> int:
    """Try all pairs, print the table, and write it to --out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--policy", choices=["rollback", "continue"], default="rollback")
    parser.add_argument("--only", default="", help="part of the names of the faults")
    parser.add_argument("--keep", type=Path, help="folder that keeps the runs that did not end as promised")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    pairs = [*((pair, False) for pair in at_once()), *((pair, True) for pair in in_recovery())]
    pairs = [pair for pair in pairs if given.only in " + ".join(map(str, pair[0]))]
    rows, wrong = [], 0
    with tempfile.TemporaryDirectory() as base:
        quiet = Path(base) / "quiet"
        quiet.mkdir()
        undisturbed = Attempt(quiet, (), False, given.policy)
        assert undisturbed.train() == 0, undisturbed.last_line
        for number, (faults, successive) in enumerate(pairs):
            folder = Path(given.keep or base) / f"{number}"
            folder.mkdir(parents=True)
            said, is_right = outcome(
                Attempt(folder, faults, successive, given.policy), given.policy, undisturbed.run
            )
            wrong += not is_right
            rows.append(f"| {faults[0]} | {faults[1]} | {'as promised' if is_right else 'WRONG'}: {said} |")
            print(rows[-1], flush=True)
    lines = [
        f"# Two faults: at once, and in each phase of a recovery, `{given.policy}`",
        "",
        f"{len(pairs)} runs, {wrong} not as promised. `{RECIPE}`, three students, local launcher.",
        "",
        *conditions("fault_pairs", f"One run each, limits.step_s {STEP_S}, limits.startup_s {STARTUP_S}"),
        "",
        "| first fault | second fault | outcome |",
        "| --- | --- | --- |",
        *rows,
    ]
    if given.out is not None:
        given.out.write_text("\n".join(lines) + "\n")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())

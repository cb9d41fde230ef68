"""One run under `rollback` that meets a fault in each epoch, against the same run without any.

    python -m benchmarks.soak FOLDER --faults 2000 --out docs/results/soak.md
    python -m benchmarks.soak FOLDER --faults 200 --launcher ray --out docs/results/soak-ray.md

The weights of all students must be equal bit for bit, and nothing may be left: no process, no shared memory,
no half-written file. Otherwise the exit code is 1. All state is in FOLDER: the same command goes on with a
soak that was interrupted.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.soak.check import differing_students, leftovers
from benchmarks.soak.faults import ENDS_LAUNCHER, Fault, draw, offer
from benchmarks.soak.page import page
from benchmarks.soak.timeline import outcomes, process_ids, read_events
from kdcl_dist.config.recipe_file import load_recipe
from kdcl_dist.run.storage import Folder

RECIPE = "examples/digits.yaml"
#: Digits that are trained on, and samples a step: a step takes longer to recover than to repeat.
OVERRIDES = (
    "data.train_per_class=64",
    "batch_size=64",
    "students.small.replicas=2",
    "limits.step_s=10",
    "failure.max_bad_steps=0",
)
STEPS_PER_EPOCH = 10
#: Faults that the processes of the run look for at once.
WINDOW = 6
POLL_S = 0.05
#: Seconds without any event after which the run counts as hanging: no limit of the recipe is as long.
HANGS_S = 600.0
INJECT = Path("tests/support/inject")


class SoakFailed(Exception):
    """The run hangs, or ended in a way that no fault explains."""


@dataclass
class Soak:
    """One run and its faults.

    Args:
        folder: of all its state.
        faults: to inject; none for the undisturbed run.
        launcher: "local" or "ray".
        overrides: of the recipe.
    """

    folder: Path
    faults: list[Fault]
    launcher: str
    overrides: list[str]

    @property
    def events(self) -> Path:
        """The file of events with their times."""
        return self.folder / "events.jsonl"

    @property
    def run(self) -> Folder:
        """The run folder."""
        return Folder(str(self.folder)) / "run"

    @property
    def temporary(self) -> Path:
        """The folder of temporary files; a short path, since those of sockets have 107 characters at most."""
        digest = hashlib.sha256(str(self.folder).encode()).hexdigest()[:8]
        return Path(tempfile.gettempdir()) / f"soak-{digest}"

    def train(self) -> None:
        """Train to the end, through all faults; after a launcher's end start another."""
        (self.folder / "met").mkdir(parents=True, exist_ok=True)
        self.temporary.mkdir(exist_ok=True)
        while not self._has_finished():
            self._launch()

    def _has_finished(self) -> bool:
        return any(event.get("finished") for event in read_events(self.events))

    def _launch(self) -> None:
        """One life of the launching process."""
        expected = {fault.number for fault in self._met() if fault.how in ENDS_LAUNCHER}
        command = [sys.executable, "-m", "benchmarks.soak.launcher", self.launcher, str(self.folder), "run"]
        with (self.folder / "output.log").open("a") as log:
            process = subprocess.Popen(
                [*command, str(self.events), RECIPE, *self.overrides],
                env=self._environment(),
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C ends the soak, which then ends the run
            )
            try:
                self._watch(process, expected)
            except BaseException:
                process.terminate()
                process.wait()
                raise
        met = {fault.number for fault in self._met() if fault.how in ENDS_LAUNCHER}
        if process.returncode and met == expected:
            raise SoakFailed(f"the run ended by itself with exit code {process.returncode}: see {log.name}")

    def _watch(self, process: subprocess.Popen[bytes], known: set[int]) -> None:
        """Offer the next faults, and kill the launching process where it is a fault's turn to do so."""
        while process.poll() is None:
            met = self._met()
            offer(self._next({fault.number for fault in met}), self.folder)
            if any(fault.how == "launcher killed" and fault.number not in known for fault in met):
                process.kill()
                process.wait()
                return
            if self.events.exists() and time.time() - self.events.stat().st_mtime > HANGS_S:
                raise SoakFailed(f"no event for {HANGS_S:g} s: the run hangs")
            time.sleep(POLL_S)

    def _met(self) -> list[Fault]:
        names = {int(path.name) for path in (self.folder / "met").iterdir()}
        return [self.faults[number] for number in sorted(names)]

    def _next(self, met: set[int]) -> Iterator[Fault]:
        """The first faults that can still be met: those of steps that no checkpoint holds yet."""
        saved = max((event["step"] for event in read_events(self.events) if "step" in event), default=0)
        ahead = (f for f in self.faults if f.number not in met and f.step >= saved)
        return (fault for fault, _ in zip(ahead, range(WINDOW), strict=False))

    def _environment(self) -> dict[str, str]:
        paths = [str(INJECT.absolute()), str(Path.cwd()), os.environ.get("PYTHONPATH", "")]
        return os.environ | {
            "KDCL_TEST_FAULTS": str(self.folder / "faults.jsonl"),
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
            "TMPDIR": str(self.temporary),
            "TORCHINDUCTOR_CACHE_DIR": str(self.folder / "inductor"),
            "CUDA_VISIBLE_DEVICES": "",
        }


def main() -> int:
    """Train the run with faults and the one without, compare them, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--faults", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--launcher", choices=["local", "ray"], default="local")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    for number in (signal.SIGINT, signal.SIGTERM):  # also in the background, where a shell ignores Ctrl-C
        signal.signal(number, signal.default_int_handler)
    common = [*OVERRIDES, f"epochs={given.faults}", f"failure.max_failures={10 * given.faults}"]
    recipe = load_recipe(RECIPE, common)
    faults = draw(given.faults, given.seed, [worker.name for worker in recipe.workers], STEPS_PER_EPOCH)
    folder = given.folder.absolute()
    quiet = Soak(folder / "undisturbed", [], "local", common)
    stormy = Soak(folder / "disturbed", faults, given.launcher, common)
    for soak in (stormy, quiet):
        soak.train()
    events = read_events(stormy.events)
    differ = differing_students(quiet.run, stormy.run, recipe.names)
    left = leftovers(stormy.folder, stormy.temporary, process_ids(events))
    found = outcomes(faults, stormy.folder, events)
    text = page(given.launcher, found, len(faults), given.seed, differ, left)
    print(text)
    if given.out is not None:
        given.out.write_text(text)
    return int(bool(differ or left))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except SoakFailed as error:
        sys.exit(f"soak: {error}")
    except KeyboardInterrupt:
        sys.exit("soak: interrupted; the same command goes on")

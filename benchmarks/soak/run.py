"""One run that meets faults: it is started, watched, and after the end of its launching process resumed."""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.soak.faults import ENDS_LAUNCHER, LAUNCHER_STOPPED, Fault, launcher_id, offer
from benchmarks.soak.timeline import EventFile
from kdcl_dist.run.storage import Folder

__all__ = ["RECIPE", "STOPPED_S", "Soak", "SoakFailed"]

RECIPE = "examples/digits.yaml"
INJECT = Path("tests/support/inject")
#: Faults that the processes of the run look for at once.
WINDOW = 6
POLL_S = 0.05
#: Seconds for which the launching process is stopped, and in which it ends after it is asked to.
STOPPED_S, END_S = 8.0, 60.0


class SoakFailed(Exception):
    """The run hangs, or ended in a way that no fault explains."""


class Soak:
    """One run and its faults; all its state is in its folder, so that it can be interrupted.

    Args:
        folder: of the run and its faults.
        faults: to inject, by number; none for the undisturbed run.
        launcher: "local" or "ray".
        overrides: of the recipe.
        hangs_s: seconds without any event after which the run counts as hanging: more than all limits of the
            recipe.

    Attributes:
        events: what the launching processes noted.
        met: the numbers of the faults that have happened.
    """

    def __init__(
        self, folder: Path, faults: list[Fault], launcher: str, overrides: list[str], hangs_s: float
    ) -> None:
        self.folder, self.faults, self.launcher = folder, faults, launcher
        self.overrides, self.hangs_s = overrides, hangs_s
        self.events = EventFile(folder / "events.jsonl")
        (folder / "met").mkdir(parents=True, exist_ok=True)
        self.temporary.mkdir(exist_ok=True)
        self.met, self._offered = self._marked(), list[Fault]()

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
        """Train to the end, through all faults; after a launcher's end start another.

        Raises:
            SoakFailed: see there; another call goes on with the run.
        """
        while not any(event.get("finished") for event in self.events.read()):
            self._launch()

    def tidy(self) -> None:
        """Remove the folder of temporary files, unless something is left in it."""
        with contextlib.suppress(OSError):
            self.temporary.rmdir()

    def _launch(self) -> None:
        """One life of the launching process."""
        before = self._ends()
        command = [sys.executable, "-m", "benchmarks.soak.launcher", self.launcher, str(self.folder), "run"]
        with (self.folder / "output.log").open("a") as log:
            self._offer()
            process = subprocess.Popen(
                [*command, str(self.events.path), RECIPE, *self.overrides],
                env=self._environment(),
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C ends the soak, which then ends the run
            )
            launcher_id(self.folder).write_text(str(process.pid))
            try:
                self._watch(process)
            except BaseException:
                _end(process)
                raise
        self._newly_met()
        if process.returncode and self._ends() == before:
            raise SoakFailed(f"the run ended by itself with exit code {process.returncode}: see {log.name}")

    def _ends(self) -> int:
        """How many faults that end the launching process have happened."""
        return sum(self.faults[number].how in ENDS_LAUNCHER for number in self.met)

    def _watch(self, process: subprocess.Popen[bytes]) -> None:
        """Offer the next faults, and let a launching process go on that one of them has stopped."""
        began = time.time()
        while process.poll() is None:
            for fault in self._newly_met():
                if fault.how == LAUNCHER_STOPPED:
                    _let_go_on(process)
            self._offer()
            latest = self.events.path.stat().st_mtime if self.events.path.exists() else began
            if time.time() - max(began, latest) > self.hangs_s:
                raise SoakFailed(f"no event for {self.hangs_s:g} s: the run hangs")
            time.sleep(POLL_S)

    def _marked(self) -> set[int]:
        """The numbers of the faults that have happened."""
        return {int(path.name) for path in (self.folder / "met").iterdir()}

    def _newly_met(self) -> list[Fault]:
        before, self.met = self.met, self._marked()
        return [self.faults[number] for number in sorted(self.met - before)]

    def _offer(self) -> None:
        """Write the first faults that can still be met: those of steps that no checkpoint holds yet."""
        saved = max((event["step"] for event in self.events.read() if "step" in event), default=0)
        ahead = [f for f in self.faults if f.number not in self.met and self._until(f) >= saved][:WINDOW]
        if ahead != self._offered:
            self._offered = ahead
            offer(ahead, self.folder)

    def _until(self, fault: Fault) -> int:
        """The step until which a fault can be met: that of the fault which it follows, if any."""
        return fault.step if fault.after is None else self.faults[fault.after].step

    def _environment(self) -> dict[str, str]:
        paths = [str(INJECT.absolute()), str(Path.cwd()), os.environ.get("PYTHONPATH", "")]
        return os.environ | {
            "KDCL_TEST_FAULTS": str(self.folder / "faults.jsonl"),
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
            "TMPDIR": str(self.temporary),
            "TORCHINDUCTOR_CACHE_DIR": str(self.folder / "inductor"),
            "CUDA_VISIBLE_DEVICES": "",
        }


def _let_go_on(process: subprocess.Popen[bytes]) -> None:
    try:
        time.sleep(STOPPED_S)
    finally:
        process.send_signal(signal.SIGCONT)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ask the launching process to end, with a checkpoint; kill one that does not."""
    process.terminate()
    try:
        process.wait(END_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()

"""The changes of the cohort, drawn from a seed, and made one after another while the run trains."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.joins.watch import Watch
from kdcl_dist.membership.monitor import COORDINATOR
from kdcl_dist.run.cohort_requests import Request, ask
from kdcl_dist.run.storage import Folder

__all__ = ["Change", "Changes", "read_changes"]

#: The fewest and the most students of the cohort.
LEAST, MOST = 2, 5
#: How a change happens, and in how many of 10.
SHARES = {"join": 4, "leave": 3, "kill": 3}
MODELS = ("mlp", "cnn_small")
#: Seconds between two changes, and from a request to the death of a process meanwhile, at most.
REST_S, FIRE_S = 0.5, 3.0


@dataclass(frozen=True)
class Change:
    """A change that has happened.

    Attributes:
        number: of the change.
        kind: "join", "leave" or "kill".
        who: the student, or "coordinator".
        killed: whose process was killed before a newcomer had joined; None without.
        refused: whether the newcomer could not join, since it was the one that was killed.
        seconds: from the request, or the death, to the next generation with the other cohort.
    """

    number: int
    kind: str
    who: str
    killed: str | None
    refused: bool
    seconds: float


def read_changes(path: Path) -> list[Change]:
    """The changes that have happened; of a line that was not ended, nothing."""
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [Change(**json.loads(line)) for line in lines if line.endswith("}\n")]


class Changes(threading.Thread):
    """Makes changes until there are enough, then asks the run to stop.

    Args:
        count: of changes, with those of earlier starts.
        seed: of the draw.
        folder: of the run.
        path: of the file that has the changes.
        watch: of the run.
        stop: asks the run to stop.

    Attributes:
        error: why no more changes were made; None if all were.
    """

    def __init__(
        self, count: int, seed: int, folder: Folder, path: Path, watch: Watch, stop: threading.Event
    ) -> None:
        super().__init__(name="changes", daemon=True)
        self.count, self.seed, self.folder, self.path, self.watch = count, seed, folder, path, watch
        self.stop = stop
        self.error: Exception | None = None

    def run(self) -> None:
        """Make the changes."""
        try:
            self.watch.wait(lambda: self.watch.generations > 0, "the start", self.stop)
            for number in range(len(read_changes(self.path)), self.count):
                change = self._make(number, random.Random(f"{self.seed} {number}"))
                if self.stop.is_set():  # by the user
                    return
                with self.path.open("a") as file:
                    file.write(json.dumps(asdict(change)) + "\n")
                self.stop.wait(REST_S)
        except Exception as error:
            self.error = error
        finally:
            self.stop.set()

    def _make(self, number: int, dice: random.Random) -> Change:
        present, began = sorted(self.watch.placement), time.monotonic()
        kind = dice.choices(list(SHARES), list(SHARES.values()))[0]
        if kind == "join" and len(present) >= MOST:
            kind = "leave"
        if kind == "leave" and len(present) <= LEAST:
            kind = "join"
        killed = None
        if kind == "join":
            who, killed = self._join(number, present, dice)
        elif kind == "leave":
            who = self._leave(dice.choice(present))
        else:
            who = self._kill(dice.choice([*present, COORDINATOR]))
        return Change(number, kind, who, killed, who in self.watch.refused, time.monotonic() - began)

    def _join(self, number: int, present: list[str], dice: random.Random) -> tuple[str, str | None]:
        """Let a student join; in one of three cases a process dies before it has, maybe its own."""
        who = f"s{number}"
        fields = {"name": who, "model": dice.choice(MODELS), "optimizer": {"lr": dice.choice((0.01, 0.05))}}
        ask(self.folder, Request(add=fields))
        killed = dice.choice([*present, COORDINATOR, who]) if dice.random() < 1 / 3 else None
        if killed is not None:
            self.stop.wait(FIRE_S * dice.random())
            if (pid := process_of(killed)) is not None:
                os.kill(pid, signal.SIGKILL)
        self._wait(lambda: who in self.watch.placement or who in self.watch.refused, f"that {who} joins")
        return who, killed

    def _leave(self, who: str) -> str:
        ask(self.folder, Request(remove=who))
        self._wait(lambda: who not in self.watch.placement, f"that {who} leaves")
        return who

    def _kill(self, who: str) -> str:
        before = self.watch.generations
        if (pid := process_of(who)) is not None:
            os.kill(pid, signal.SIGKILL)
            self._wait(lambda: self.watch.generations > before, f"a generation after the death of {who}")
        return who

    def _wait(self, happened: object, what: str) -> None:
        self.watch.wait(happened, what, self.stop)  # type: ignore[arg-type]


def process_of(name: str) -> int | None:
    """The process of a student or the coordinator, among those that go back to this process."""
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            named = (entry / "comm").read_text() == f"kdcl:{name}"[:15] + "\n"
            if named and os.getpid() in _ancestors(int(entry.name)):
                return int(entry.name)
    return None


def _ancestors(pid: int) -> Iterator[int]:
    """The process that has started one, the process that has started that, and so on."""
    while pid > 1:
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        yield pid

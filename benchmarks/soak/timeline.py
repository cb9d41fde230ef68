"""What the launching processes of a soak noted, and when each fault was found and was over."""

from __future__ import annotations

import contextlib
import csv
import io
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise, takewhile
from pathlib import Path
from typing import Any

from benchmarks.soak.faults import COORDINATOR, ENDS_LAUNCHER, SURVIVED, Fault

__all__ = ["Event", "EventFile", "Outcome", "as_csv", "duration_s", "outcomes", "process_ids"]

Event = Mapping[str, Any]
#: Seconds after a fault in which a report can be of it; a longer pause is not the run's.
LATEST_S = 60.0


@dataclass(frozen=True)
class Outcome:
    """A fault that happened.

    Attributes:
        fault: which.
        time: when, in seconds since 1970.
        found_s: seconds until the failure was reported; None where nothing had to be reported.
        on_s: seconds until the next generation of the cohort; None where it stayed the same.
        lost: steps that were trained again.
    """

    fault: Fault
    time: float
    found_s: float | None
    on_s: float | None
    lost: int


class EventFile:
    """The file of a run's events; each look reads only what is new.

    Args:
        path: of the file, which may not exist yet.
    """

    def __init__(self, path: Path) -> None:
        self.path, self._events, self._read = path, list[Event](), 0

    def read(self) -> list[Event]:
        """All events so far; of a line that a killed process did not end, nothing."""
        with contextlib.suppress(FileNotFoundError), self.path.open("rb") as file:
            file.seek(self._read)
            whole = file.read().rpartition(b"\n")[:2]
            self._read += sum(map(len, whole))
            for line in whole[0].splitlines():
                with contextlib.suppress(ValueError):
                    self._events.append(json.loads(line))
        return self._events


def duration_s(events: list[Event]) -> float:
    """Seconds that a run took, without those for which the soak itself was interrupted."""
    times = [float(event["time"]) for event in events]
    return sum(min(after - before, LATEST_S) for before, after in pairwise(times))


def process_ids(events: list[Event]) -> set[int]:
    """Ids of all processes that ever took part in a run."""
    placements = (event["placement"] for event in events if event["kind"] == "started")
    return {int(place["pid"]) for placement in placements for place in placement.values()}


def outcomes(faults: Iterable[Fault], folder: Path, events: list[Event]) -> list[Outcome]:
    """The faults that happened, in their order of time.

    Args:
        faults: all that were drawn.
        folder: of the soak, with the markers of faults.
        events: of the run.
    """
    happened = [fault for fault in faults if fault.marker(folder).exists()]
    met = sorted((fault.marker(folder).stat().st_mtime, fault.number, fault) for fault in happened)
    return [
        _outcome(fault, time, [event for event in events if event["time"] >= time]) for time, _, fault in met
    ]


def _outcome(fault: Fault, time: float, later: list[Event]) -> Outcome:
    """What followed a fault: the first report that may be of it, and the generation after that.

    Nothing is known where the launcher was killed before it could report.
    """
    starts = [event for event in later if event["kind"] == "started"]
    if fault.how in SURVIVED:
        return Outcome(fault, time, None, None, 0)
    if fault.how in ENDS_LAUNCHER:
        return Outcome(fault, time, None, *_next(fault, time, starts))
    # The processes of a launcher that was killed end a moment later: nobody tells what they meet until then.
    same = takewhile(lambda e: e["kind"] != "launched" and e["time"] < time + LATEST_S, later)
    reports = [e for e in same if e["kind"] == "failure" and _is_of(fault, e)]
    if not reports:
        return Outcome(fault, time, None, None, 0)
    found = float(reports[0]["time"])
    return Outcome(fault, time, found - time, *_next(fault, time, [e for e in starts if e["time"] >= found]))


def _next(fault: Fault, time: float, starts: list[Event]) -> tuple[float | None, int]:
    """Seconds to the next generation, and the steps that it repeats."""
    if not starts:
        return None, 0
    return float(starts[0]["time"]) - time, max(0, fault.step - int(starts[0]["step"]))


def _is_of(fault: Fault, report: Event) -> bool:
    """Whether a report may be of the fault; the ends of a cut connection may both be named, or none."""
    if fault.how.startswith("cut"):
        return True
    named = f"'{fault.who}'" in report["text"]
    return named or (fault.who == COORDINATOR and not report["text"].startswith("student"))


def as_csv(found: Mapping[int, list[Outcome]]) -> str:
    """The outcomes of each seed's run as a table, with what is not known left out."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(("seed", "fault", "role", "process", "phase", "step", "how", "found_s", "on_s", "lost"))
    for seed, each in found.items():
        for outcome in each:
            fault = outcome.fault
            times = ["" if s is None else f"{s:.3f}" for s in (outcome.found_s, outcome.on_s)]
            place = fault.number, fault.role, fault.who, fault.phase, fault.step, fault.how
            table.writerow((seed, *place, *times, outcome.lost))
    return text.getvalue()

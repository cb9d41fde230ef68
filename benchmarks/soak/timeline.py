"""What the launching processes of a soak noted, and when each fault was found and was over."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.soak.faults import COORDINATOR, ENDS_LAUNCHER, SURVIVED, Fault

__all__ = ["Event", "Outcome", "outcomes", "process_ids", "read_events"]

Event = Mapping[str, Any]
#: Seconds after a fault in which a report can be of it.
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


def read_events(path: Path) -> list[Event]:
    """All events so far; of a line that a killed process did not end, nothing."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("}\n")]


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
    """What followed a fault: the first report that may be of it, and the generation after that."""
    starts = [event for event in later if event["kind"] == "started"]
    if fault.how in SURVIVED:
        return Outcome(fault, time, None, None, 0)
    if fault.how in ENDS_LAUNCHER:
        return Outcome(fault, time, None, *_next(fault, time, starts))
    # The processes of a launcher that was killed end a moment later: nobody tells what they meet until then.
    launches = (float(event["time"]) for event in later if event["kind"] == "launched")
    until = min(time + LATEST_S, *launches, math.inf)
    reports = [e for e in later if e["kind"] == "failure" and e["time"] < until and _is_of(fault, e)]
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

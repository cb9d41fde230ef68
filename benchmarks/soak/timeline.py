"""What the launching processes of a soak noted, and when each fault was found and was over."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.soak.faults import Fault

__all__ = ["Event", "Outcome", "outcomes", "process_ids", "read_events"]

Event = Mapping[str, Any]


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
    ends = [time for time, _, _ in met[1:]] + [float("inf")]
    found = []
    for (time, _, fault), until in zip(met, ends, strict=True):
        report = _first(events, "failure", time, until)
        start = _first(events, "started", time, until)
        lost = 0 if start is None else max(0, fault.step - int(start["step"]))
        found.append(Outcome(fault, time, _since(report, time), _since(start, time), lost))
    return found


def _first(events: list[Event], kind: str, after: float, until: float) -> Event | None:
    return next((e for e in events if e["kind"] == kind and after <= e["time"] < until), None)


def _since(event: Event | None, time: float) -> float | None:
    return None if event is None else float(event["time"]) - time

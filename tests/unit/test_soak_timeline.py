"""When a soak says that a fault was found."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from benchmarks.soak.faults import Fault
from benchmarks.soak.timeline import Event, outcomes


@pytest.mark.parametrize(("launched", "found_s"), [(False, 2.0), (True, None)])
def test_a_fault_between_two_launches_is_found_by_nobody(
    launched: bool, found_s: float | None, tmp_path: Path
) -> None:
    """A report of the next launch is of another fault."""
    fault = Fault(0, "a", "gather", 4, "kill")
    fault.marker(tmp_path).parent.mkdir()
    fault.marker(tmp_path).touch()
    os.utime(fault.marker(tmp_path), (100.0, 100.0))
    events: list[Event] = [
        *([{"time": 101.0, "kind": "launched"}] if launched else []),
        {"time": 102.0, "kind": "failure", "text": "student 'a', step 4"},
        {"time": 103.0, "kind": "started", "step": 3},
    ]
    (outcome,) = outcomes([fault], tmp_path, events)
    assert outcome.found_s == found_s

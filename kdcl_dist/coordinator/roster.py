"""Which students take part, and which were away from when to when."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from kdcl_dist.run.checkpoint import Manifest

__all__ = ["Absences"]


class Absences:
    """Which student was away from when to when, under the policy `continue`.

    Args:
        names: the students.
        found: those that the run's record has already.

    Attributes:
        found: as the run's record has it: the student, the steps between which it took no part, and the
            step of the state with which it came back.
    """

    def __init__(self, names: Sequence[str], found: Sequence[dict[str, Any]] = ()) -> None:
        self.names = names
        self.found = [dict(absence) for absence in found]

    def rewind(self, start: Manifest | None) -> None:
        """All are back at a checkpoint, or at the start: what came after it has not happened."""
        step = 0 if start is None else start.step
        self.found = [absence for absence in self.found if absence["since"] < step]
        for absence in self.found:
            if absence["until"] is None or absence["until"] > step:
                absence |= {"until": step, "state_of": _state_of(start, absence["student"])}

    def note(
        self, present: Collection[int], restored: Collection[int], step: int, start: Manifest | None
    ) -> list[str]:
        """Note who is there as the cohort goes on at a step; a line for each student that left or came back.

        Args:
            present, restored: see `kdcl_dist.membership.rendezvous.Call`.
            step: training steps done.
            start: the checkpoint that those who are restored take their state of.
        """
        lines = []
        for place, name in enumerate(self.names):
            absence = next((a for a in self.found if (a["student"], a["until"]) == (name, None)), None)
            if place not in present and absence is None:
                self.found.append({"student": name, "since": step, "until": None, "state_of": None})
                lines.append(f"{name} is away from step {step} on")
            elif place in restored:
                state_of = _state_of(start, name)
                if absence is None:
                    self.found.append(absence := {"student": name, "since": step})
                absence |= {"until": step, "state_of": state_of}
                lines.append(f"{name} is back at step {step}, with its state of step {state_of}")
        return lines


def _state_of(start: Manifest | None, name: str) -> int:
    """Training steps in the state that a student takes up."""
    if start is None or (part := start.parts.get(name)) is None:
        return 0
    return start.step if part.step is None else part.step

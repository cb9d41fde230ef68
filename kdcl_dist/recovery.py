"""Whether and how a run goes on after a failure. Pure decisions, without processes."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from kdcl_dist.checkpoint import Manifest
from kdcl_dist.errors import (
    CheckpointError,
    ContributionError,
    CoordinatorFailed,
    CoordinatorLost,
    ExchangeBroke,
    KdclError,
    NonFiniteLogits,
    StartupTimeout,
    StorageError,
    StudentLost,
    UserError,
)
from kdcl_dist.recipe import Failure

__all__ = ["Absences", "gives_up", "goes_on"]

#: What the same code does again with the same data, or what only the user can mend.
FINAL = (UserError, ContributionError, StartupTimeout, StorageError, CheckpointError)


def gives_up(failure: Failure, past: Sequence[KdclError], cause: KdclError) -> bool:
    """Whether a run ends with a failure instead of going back to its newest checkpoint.

    Args:
        failure: the recipe's policy.
        past: the failures that the run survived.
        cause: the new one.
    """
    final = isinstance(cause, FINAL) and not isinstance(cause, NonFiniteLogits)
    if final or len(past) >= failure.allowed:
        return True
    return any(_same(cause, earlier) for earlier in past)


def goes_on(cause: KdclError) -> bool:
    """Whether the students that a failure did not meet can go on from where they are.

    What the coordinator knows is lost with it: then all go back to the newest checkpoint.
    """
    return not isinstance(cause, (CoordinatorFailed, CoordinatorLost))


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
        """Note who is there as the cast goes on at a step; a line for each student that left or came back.

        Args:
            present, restored: see `kdcl_dist.meeting.Call`.
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


def _same(cause: KdclError, earlier: KdclError) -> bool:
    """Whether code raised at the same place again: going back to before it would repeat it for ever.

    A process that died or fell silent may have been killed, or its host: that says nothing of its code, nor
    does a connection that broke.
    """
    if isinstance(cause, (StudentLost, CoordinatorLost, ExchangeBroke)) or type(cause) is not type(earlier):
        return False
    place = (cause.student, cause.step, cause.phase)
    return None not in place[1:] and place == (earlier.student, earlier.step, earlier.phase)

"""Which process is lost: pure functions from what one poll observes to a decision.

`kdcl_dist.membership.failure_detector` polls the store, builds the observations and acts on the decisions.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import NamedTuple

from kdcl_dist.membership.heartbeat import STALE_S

__all__ = [
    "GRACE_S",
    "NOTICE_S",
    "WAIT",
    "CoordinatorObservation",
    "Decision",
    "Outcome",
    "PeerState",
    "StudentsObservation",
    "classify",
    "classify_coordinator",
    "classify_start",
]

#: Seconds in which all survivors report that their exchange broke too, and in which most of them do.
GRACE_S, NOTICE_S = 3.0, 0.5


class Outcome(Enum):
    """What an observation shows."""

    WAIT = auto()
    NOBODY_LOST = auto()
    DIED = auto()
    NO_ANSWER = auto()


class Decision(NamedTuple):
    """An outcome, and the ranks of the students that are lost."""

    outcome: Outcome
    ranks: tuple[int, ...] = ()


WAIT = Decision(Outcome.WAIT)


@dataclass(frozen=True)
class PeerState:
    """The state of a process that has not answered since the wait began.

    Attributes:
        beats: heartbeats that were observed during the wait; the first of them can be older than the wait.
        stale: whether the heartbeat has stood still for `STALE_S` seconds of the wait.
        stale_before: whether it has stood still for as long, where the time before the wait counts too.
        gone: whether the process is known to be dead, or another process has replaced it.
    """

    beats: int = 0
    stale: bool = False
    stale_before: bool = False
    gone: bool = False

    def is_dead(self, limit_ended: bool = False) -> bool:
        """Whether the process counts as dead; `limit_ended`: the wait follows one that ended by its limit."""
        return self.gone or self.stale or (limit_ended and self.stale_before)


@dataclass(frozen=True)
class StudentsObservation:
    """What the coordinator observes after an exchange broke.

    Attributes:
        elapsed_s: seconds since then.
        late: ranks whose own limit ended, in the order of their reports. A process whose limit ends closes
            its connections, and so breaks the exchange of the others.
        silent: the students that have not reported that their exchange broke, by rank.
    """

    elapsed_s: float
    late: tuple[int, ...] = ()
    silent: Mapping[int, PeerState] = field(default_factory=dict)

    @property
    def dead(self) -> tuple[int, ...]:
        """The silent students that count as dead."""
        return tuple(rank for rank, state in self.silent.items() if state.is_dead(bool(self.late)))

    @property
    def busy(self) -> tuple[int, ...]:
        """The silent students that do not count as dead."""
        return tuple(rank for rank in self.silent if rank not in self.dead)


def classify(seen: StudentsObservation, *, limit_s: float, unfinished: Collection[int] = ()) -> Decision:
    """Which students are lost, for the coordinator.

    Args:
        seen: the observation.
        limit_s: seconds for which a live student may be too busy to notice that its exchange broke.
        unfinished: ranks whose own transfer was not done when the coordinator's limit ended.
    """
    suspects = tuple(rank for rank in unfinished if rank in seen.silent)
    if not suspects:
        if not _is_complete(seen, limit_s):
            return WAIT
        suspects = tuple(seen.silent)
    dead = seen.dead
    lost = tuple(rank for rank in suspects if rank in dead) or suspects  # the others are only busy
    if not lost:
        return Decision(Outcome.NOBODY_LOST)
    if seen.late:  # others may hang at the same step, behind what the limit was for
        lost += tuple(rank for rank, state in seen.silent.items() if state.stale_before and rank not in lost)
    died = not seen.late and any(rank in dead for rank in lost)
    return Decision(Outcome.DIED if died else Outcome.NO_ANSWER, lost)


def _is_complete(seen: StudentsObservation, limit_s: float) -> bool:
    """Whether every live student that is able to report has done so."""
    if seen.elapsed_s >= (GRACE_S if seen.late else limit_s):
        return True
    # A live student notices by its next heartbeat, unless it is busy; then the limit ended because of it.
    all_beat = all(seen.silent[rank].beats > 1 for rank in seen.busy)
    return (bool(seen.late) and seen.elapsed_s > NOTICE_S and all_beat) or not seen.busy


@dataclass(frozen=True)
class CoordinatorObservation:
    """What a student observes of the coordinator while it waits for the diagnosis.

    Attributes:
        elapsed_s: seconds since the student's exchange broke.
        own_limit: whether it broke because the student's own limit ended.
        stale: whether the coordinator's heartbeat stands still.
        phase: the coordinator's phase, None without a heartbeat.
        stuck: whether the coordinator has been in this phase for so long that its heartbeat has a stack.
        broke: whether the coordinator has reported that its exchange broke.
    """

    elapsed_s: float
    own_limit: bool = False
    stale: bool = False
    phase: str | None = None
    stuck: bool = False
    broke: bool = False


def classify_coordinator(seen: CoordinatorObservation, *, limit_s: float) -> Outcome:
    """Whether the coordinator is lost, for a student; `limit_s`: seconds that the coordinator may be busy."""
    if seen.stale:
        return Outcome.DIED
    return Outcome.NO_ANSWER if seen.elapsed_s > _patience_s(seen, limit_s) else Outcome.WAIT


def _patience_s(seen: CoordinatorObservation, limit_s: float) -> float:
    """Seconds in which a live coordinator delivers its diagnosis.

    A coordinator that forms an ensemble waits for no other process. In an exchange it notices that the
    student closed its connections. In any other phase its storage may be slow, or it waits for busy students.
    """
    if seen.own_limit and not seen.broke:
        if seen.phase == "ensemble" and seen.stuck:
            return 0.0
        if seen.phase in ("ensemble", "gather", "broadcast"):
            return GRACE_S
    return limit_s + GRACE_S + STALE_S


def classify_start(
    elapsed_s: float, missing: Mapping[int, PeerState], *, limit_s: float, is_coordinator: bool
) -> Decision:
    """Which processes are lost before the group forms.

    A student observes the coordinator only, and waits longer than the coordinator, which names the students
    that are missing.

    Args:
        elapsed_s: seconds since the wait began.
        missing: the observed processes that are not ready to form the group, by rank.
        limit_s: seconds that the coordinator waits for students.
        is_coordinator: whether the coordinator decides.
    """
    if dead := tuple(rank for rank, state in missing.items() if state.is_dead()):
        return Decision(Outcome.DIED, dead)
    late = elapsed_s > limit_s + (0 if is_coordinator else GRACE_S + STALE_S)
    if late and (missing or not is_coordinator):
        return Decision(Outcome.NO_ANSWER, tuple(missing))
    return WAIT

"""Events that a running cohort emits for displays and logs."""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = [
    "ENSEMBLE",
    "CheckpointSaved",
    "Ended",
    "EpochEnded",
    "Evaluating",
    "Event",
    "Note",
    "Started",
    "Stepped",
    "Values",
    "Waiting",
    "Warned",
]

#: The name of the ensemble, which counts as one more student.
ENSEMBLE = "ensemble"
#: Values by name, by student.
Values = dict[str, dict[str, float]]


@dataclass(frozen=True)
class Started:
    """The cohort is complete: host, process id, device, parameters and peak memory of each worker."""

    students: list[str]
    placement: dict[str, dict[str, str | int]]
    epochs: int
    steps_per_epoch: int
    step: int


@dataclass(frozen=True)
class Stepped:
    """`step` training steps are done; `values` are means over the epoch so far, and the last step's `lr`."""

    step: int
    values: Values


@dataclass(frozen=True)
class Evaluating:
    """`batch` of the `batches` of a test are done, after `step` training steps."""

    step: int
    batch: int
    batches: int


@dataclass(frozen=True)
class Waiting:
    """The coordinator has been in one phase for long.

    Attributes:
        phase: what it does: "start" while the cohort forms, "gather" while it awaits messages, ...
        step: the step in which it does so.
        seconds: for how long.
        late: the workers, or the coordinator, for which the others wait; empty where that is not known.
    """

    phase: str
    step: int
    seconds: float
    late: tuple[str, ...]


@dataclass(frozen=True)
class EpochEnded:
    """An epoch is done: means over its training steps, and the results of the passes that it has had."""

    epoch: int
    train: Values
    test: Values
    val: Values = field(default_factory=dict)


@dataclass(frozen=True)
class CheckpointSaved:
    """A checkpoint was committed."""

    step: int


@dataclass(frozen=True)
class Note:
    """A line of information for the user."""

    text: str


@dataclass(frozen=True)
class Warned:
    """A problem that the user should look at; the run goes on."""

    text: str


@dataclass(frozen=True)
class Ended:
    """The run has ended without a failure: at its end, or stopped before it, after a checkpoint."""

    finished: bool


Event = Started | Stepped | Evaluating | Waiting | EpochEnded | CheckpointSaved | Note | Warned | Ended

"""Events that a running cohort emits for displays and logs."""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["CheckpointSaved", "EpochEnded", "Event", "Note", "Started", "Stepped", "Values", "Warned"]

#: Values by name, by student; "ensemble" counts as one more student.
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
    """`step` training steps are done; `values` are running values of the epoch."""

    step: int
    values: Values


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


Event = Started | Stepped | EpochEnded | CheckpointSaved | Note | Warned

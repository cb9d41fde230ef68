"""What a running cohort tells whoever watches it."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["CheckpointSaved", "EpochEnded", "Event", "Note", "Started", "Stepped", "Warned"]

#: Values by name, by student; "ensemble" stands beside the students.
Values = dict[str, dict[str, float]]


@dataclass(frozen=True)
class Started:
    """The cohort is complete: host, process id, device and number of parameters of each worker."""

    students: list[str]
    placement: dict[str, dict[str, str | int]]
    epochs: int
    steps_per_epoch: int
    step: int


@dataclass(frozen=True)
class Stepped:
    """Training goes on: `step` steps are done; running values of the epoch."""

    step: int
    values: Values


@dataclass(frozen=True)
class EpochEnded:
    """An epoch is done: means of its training steps, and the test results."""

    epoch: int
    train: Values
    test: Values


@dataclass(frozen=True)
class CheckpointSaved:
    """A checkpoint counts from now on."""

    step: int


@dataclass(frozen=True)
class Note:
    """Something worth a line."""

    text: str


@dataclass(frozen=True)
class Warned:
    """Something that a user should look at, though the run goes on."""

    text: str


Event = Started | Stepped | EpochEnded | CheckpointSaved | Note | Warned

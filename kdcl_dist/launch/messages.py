"""Messages that the processes of a cohort send to the launcher that started them.

Every message can be pickled, and this module imports nothing heavy, since a launcher needs no torch. The
launcher sends back an `Endpoint`, as the answer to a member's `CoordinatorUnreachable`; to the coordinator it
sends `StopAsked`, `Noticed` and `Reply`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kdcl_dist.errors import KdclError
from kdcl_dist.membership.endpoint import Endpoint
from kdcl_dist.run.events import Event

if TYPE_CHECKING:
    from kdcl_dist.config.recipe import Recipe

__all__ = [
    "Answered",
    "CohortAsked",
    "CoordinatorUnreachable",
    "EndProcess",
    "EndpointOpened",
    "EventEmitted",
    "Failed",
    "Finished",
    "Message",
    "Noticed",
    "Question",
    "Reply",
    "RunEndedByFailure",
    "StopAsked",
]


@dataclass(frozen=True)
class EndpointOpened:
    """The coordinator's store listens at this endpoint."""

    endpoint: Endpoint


@dataclass(frozen=True)
class EventEmitted:
    """The coordinator emitted an event of the run."""

    event: Event


@dataclass(frozen=True)
class EndProcess:
    """The coordinator asks for the end of a student's process, which does not answer.

    Attributes:
        name: of its worker.
        pid: its process id; None for that which the worker has now, as one that has not joined yet.
    """

    name: str
    pid: int | None


@dataclass(frozen=True)
class Question:
    """The coordinator asks a launcher of several hosts about a worker's process.

    Attributes:
        number: of the question.
        method: of `kdcl_dist.coordinator.processes.Processes`: "is_gone" or "has".
        arguments: the method's.
    """

    number: int
    method: str
    arguments: tuple[str | int, ...]


@dataclass(frozen=True)
class Reply:
    """The launcher's answer to the question of a number."""

    number: int
    answer: bool


@dataclass(frozen=True)
class StopAsked:
    """The launcher asks the coordinator for a checkpoint and an end after the current step."""


@dataclass(frozen=True)
class Noticed:
    """The launcher asks the coordinator for a checkpoint after the current step.

    Attributes:
        text: why.
    """

    text: str


@dataclass(frozen=True)
class CohortAsked:
    """The coordinator says who takes part, and who is to join.

    Attributes:
        recipe: of the run, as it is now.
        wanted: with those who are to join, for whom the coordinator asks for processes.
    """

    recipe: Recipe
    wanted: Recipe


@dataclass(frozen=True)
class CoordinatorUnreachable:
    """A student lost the store with this endpoint id, and waits for the endpoint of the next coordinator."""

    endpoint_id: str


@dataclass(frozen=True)
class Finished:
    """The sender's work is done: at the end of the run, or before it where the run was stopped."""

    at_end: bool


@dataclass(frozen=True)
class Answered:
    """The result of the sender's work, which is no part of a run."""

    result: Any


@dataclass(frozen=True)
class Failed:
    """The sender failed."""

    error: KdclError


@dataclass(frozen=True)
class RunEndedByFailure:
    """The sender learned from the coordinator that this failure ended the run."""

    error: KdclError


Message = (
    EndpointOpened
    | EventEmitted
    | EndProcess
    | Question
    | CohortAsked
    | CoordinatorUnreachable
    | Finished
    | Answered
    | Failed
    | RunEndedByFailure
)

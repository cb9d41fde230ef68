"""What the coordinator announces of a generation of the exchange group."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kdcl_dist.config.rounds import Kind, Round
from kdcl_dist.run.checkpoint import InMemory, Manifest, Part

__all__ = ["GenerationSpec", "round_of"]


@dataclass(frozen=True)
class GenerationSpec:
    """What the coordinator announces of a generation.

    Attributes:
        number: the generation.
        start: the latest checkpoint, on the storage or in memory, if there is one.
        at: the first round.
        students: indices of the students that take part.
        restored: indices of those that load their state from `start`, or begin anew without one; the others
            keep the state that they have.
        epochs: of the run; fewer than the recipe's once it ends by early stopping.
        classes: of the data.
        assistants: ranks of the coordinator's assistants that take part.
        cohort: the number of the recipe whose cohort it is; see `Rendezvous.publish`.
    """

    number: int
    start: Manifest | None
    at: Round
    students: tuple[int, ...]
    restored: tuple[int, ...]
    epochs: int
    classes: int
    assistants: tuple[int, ...] = ()
    cohort: int = 0

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> GenerationSpec:
        """The announcement whose fields were sent as JSON."""
        at = round_of(fields["at"])
        assert at is not None
        return cls(
            fields["number"],
            _manifest(fields["start"]),
            at,
            tuple(fields["students"]),
            tuple(fields["restored"]),
            fields["epochs"],
            fields["classes"],
            tuple(fields["assistants"]),
            fields["cohort"],
        )

    @property
    def epoch(self) -> int:
        """The epoch, from 0, whose students take part: the last one also after its end."""
        return min(self.at.epoch, self.epochs - 1)


def round_of(fields: Mapping[str, Any] | None) -> Round | None:
    """The round whose fields were sent as JSON."""
    return None if fields is None else Round(**{**fields, "kind": Kind(fields["kind"])})


def _manifest(fields: Mapping[str, Any] | None) -> Manifest | None:
    if fields is None:
        return None
    found = {**fields, "parts": {name: Part(**part) for name, part in fields["parts"].items()}}
    return InMemory(**found) if "generation" in fields else Manifest(**found)

"""One line of the speed table: a ratio measured in one run against a baseline, and its goal."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["Figure"]


class Figure(NamedTuple):
    """What was measured, against what.

    Attributes:
        line: the part of the speed table that it belongs to, such as "step" or "exchange".
        what: the case, with its sizes.
        ratio: the measured ratio.
        goal: the ratio that is aimed at.
        at_least: whether the goal is a lower bound; otherwise it is an upper one.
    """

    line: str
    what: str
    ratio: float
    goal: float
    at_least: bool = False

    @property
    def reached(self) -> bool:
        """Whether the goal is met."""
        return self.ratio >= self.goal if self.at_least else self.ratio <= self.goal

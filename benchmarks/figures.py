"""One line of the speed table: a ratio to a baseline of the same run, and its goal."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["Figure"]


class Figure(NamedTuple):
    """A measured ratio and its goal.

    Attributes:
        line: part of the speed table, such as "step" or "exchange".
        what: the case, with its sizes.
        ratio: the measured ratio.
        goal: the bound of the ratio.
        at_least: whether the goal is a lower bound instead of an upper one.
    """

    line: str
    what: str
    ratio: float
    goal: float
    at_least: bool = False

    @property
    def reached(self) -> bool:
        """Whether the ratio meets the goal."""
        return self.ratio >= self.goal if self.at_least else self.ratio <= self.goal

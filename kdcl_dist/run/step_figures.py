"""The figures of a training step from those of its parts (`accumulate`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean

__all__ = ["of_parts"]


def of_parts(parts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Each figure of a step: durations, whose names end in _s, add up; of others the mean counts.

    A step that pauses in one part is one that paused. Names with a slash have a student's at their end.

    Args:
        parts: the figures of each part; a figure may be missing in some.
    """
    if len(parts) == 1:
        return dict(parts[0])
    found: dict[str, list[float]] = {}
    for part in parts:
        for name, value in part.items():
            found.setdefault(name, []).append(value)
    return {name: _of_parts(name, values) for name, values in found.items()}


def _of_parts(name: str, values: Sequence[float]) -> float:
    if name == "paused":
        return max(values)
    return sum(values) if name.endswith("_s") and "/" not in name else fmean(values)

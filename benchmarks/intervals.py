"""Means over seeds, and paired differences from a base, as text."""

from __future__ import annotations

from collections.abc import Mapping

from kdcl_dist.utils.intervals import mean_interval

__all__ = ["difference"]


def difference(own: Mapping[int, float], base: Mapping[int, float] | None) -> str:
    """The mean with its 95% interval, and in brackets the mean difference from the base.

    Args:
        own: value by seed.
        base: value of the base by seed; None for the base itself.
    """
    mean = mean_interval(list(own.values()))
    text = f"{mean.value:.2f} ± {mean.half_width:.2f}"
    if base is None:
        return text
    gain = mean_interval([value - base[seed] for seed, value in own.items()])
    return f"{text} ({gain.value:+.2f} ± {gain.half_width:.2f})"

"""Intervals of few measurements: of their mean, and of their median."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist, fmean, median, stdev
from typing import NamedTuple

__all__ = ["Interval", "mean_interval", "median_interval", "share_interval", "t_quantile"]


class Interval(NamedTuple):
    """A value with its lower and upper limit, and how often such limits hold the true value.

    With a single measurement the limits are NaN.
    """

    value: float
    low: float
    high: float
    coverage: float


def mean_interval(values: Sequence[float], coverage: float = 0.95) -> Interval:
    """The mean with its interval by Student's t, exact for normal errors.

    Raises:
        ValueError: there is no value.
    """
    if not values:
        raise ValueError("values: at least one is needed")
    centre = fmean(values)
    if len(values) == 1:
        return Interval(centre, math.nan, math.nan, math.nan)
    half = t_quantile((1 + coverage) / 2, len(values) - 1) * stdev(values) / math.sqrt(len(values))
    return Interval(centre, centre - half, centre + half, coverage)


def median_interval(values: Sequence[float], coverage: float = 0.95) -> Interval:
    """The median with the narrowest pair of order statistics that covers it, for any distribution.

    The chance that the true median lies between the k-th smallest and the k-th largest of n values is
    1 - 2 P(Binomial(n, 1/2) < k). With fewer than 6 values even smallest and largest cover it less often
    than 95%; they are given all the same, with their true coverage. Raises as `mean_interval`.
    """
    if not values:
        raise ValueError("values: at least one is needed")
    ordered, count = sorted(values), len(values)
    if count == 1:
        return Interval(ordered[0], math.nan, math.nan, math.nan)

    def covers(k: int) -> float:
        return 1 - 2 * sum(math.comb(count, i) for i in range(k)) / float(2**count)

    k = max((k for k in range(1, count // 2 + 1) if covers(k) >= coverage), default=1)
    return Interval(median(ordered), ordered[k - 1], ordered[count - k], covers(k))


def share_interval(share: float, count: int, coverage: float = 0.95) -> Interval:
    """A share of independent samples, such as an accuracy, with its score interval (Wilson, 1927).

    Args:
        share: from 0 to 1.
        count: samples that it is a share of, at least 1.
        coverage: how often such limits hold the share of all that could have been drawn, nearly.

    Raises:
        ValueError: there is no sample, or the share is none.
    """
    if count < 1 or not 0 <= share <= 1:
        raise ValueError(f"share, count: a share of at least one sample is needed (got {share}, {count})")
    z = NormalDist().inv_cdf((1 + coverage) / 2)
    scale = 1 + z**2 / count
    centre = (share + z**2 / (2 * count)) / scale
    half = z / scale * math.sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
    return Interval(share, max(0.0, centre - half), min(1.0, centre + half), coverage)


def t_quantile(probability: float, freedom: int) -> float:
    """The quantile of Student's t for a whole number of degrees of freedom, probability in (0.5, 1)."""
    low, high = 0.0, 1.0
    while _t_within(high, freedom) < 2 * probability - 1:
        high *= 2
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if _t_within(middle, freedom) < 2 * probability - 1 else (low, middle)
    return high


def _t_within(t: float, freedom: int) -> float:
    """P(|T| < t) as a finite sum (Abramowitz and Stegun, 26.7.3 and 26.7.4)."""
    angle = math.atan(t / math.sqrt(freedom))
    cosine = math.cos(angle)
    if freedom % 2:
        term = total = cosine if freedom > 1 else 0.0
        for i in range(2, freedom - 1, 2):
            term *= cosine * cosine * i / (i + 1)
            total += term
        return 2 / math.pi * (angle + math.sin(angle) * total)
    term = total = 1.0
    for i in range(1, freedom - 2, 2):
        term *= cosine * cosine * i / (i + 1)
        total += term
    return math.sin(angle) * total

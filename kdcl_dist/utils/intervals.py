"""Confidence intervals of few measurements: of their mean, their median, and of a share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist, fmean, median, stdev
from typing import NamedTuple

__all__ = [
    "NO_INTERVAL",
    "Interval",
    "mean_interval",
    "median_interval",
    "share_interval",
    "t_quantile",
    "t_within",
]


class Interval(NamedTuple):
    """An estimate with its confidence limits.

    Attributes:
        value: the estimate.
        low, high: the limits; NaN for a single measurement.
        coverage: probability that such limits contain the true value; NaN for a single measurement.
    """

    value: float
    low: float
    high: float
    coverage: float

    @property
    def half_width(self) -> float:
        """What stands behind "±": the distance from the value to its lower limit."""
        return self.value - self.low


#: The interval of no measurement at all.
NO_INTERVAL = Interval(math.nan, math.nan, math.nan, math.nan)


def mean_interval(values: Sequence[float], coverage: float = 0.95) -> Interval:
    """The mean with its interval by Student's t; the coverage is exact for normal errors.

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
    """The median, with the narrowest pair of order statistics that covers it, for any distribution.

    The true median lies between the k-th smallest and the k-th largest of n values with probability
    1 - 2 P(Binomial(n, 1/2) < k). The smallest and the largest of fewer than 6 values cover the median
    less often than 95%; the interval then has these limits and their true coverage.

    Raises:
        ValueError: there is no value.
    """
    if not values:
        raise ValueError("values: at least one is needed")
    ordered, count = sorted(values), len(values)
    if count == 1:
        return Interval(ordered[0], math.nan, math.nan, math.nan)

    def covers(k: int) -> float:
        """The chance that the k-th smallest and the k-th largest enclose the median."""
        return 1 - 2 * sum(math.comb(count, i) for i in range(k)) / float(2**count)

    k = max((k for k in range(1, count // 2 + 1) if covers(k) >= coverage), default=1)
    return Interval(median(ordered), ordered[k - 1], ordered[count - k], covers(k))


def share_interval(share: float, count: int, coverage: float = 0.95) -> Interval:
    """A share of independent samples, such as an accuracy, with its score interval (Wilson, 1927).

    Args:
        share: from 0 to 1.
        count: number of samples, at least 1.
        coverage: approximate probability that such limits contain the share of the whole population.

    Raises:
        ValueError: there is no sample, or the share is outside [0, 1].
    """
    if count < 1 or not 0 <= share <= 1:
        raise ValueError(f"share, count: a share of at least one sample is needed (got {share}, {count})")
    z = NormalDist().inv_cdf((1 + coverage) / 2)
    scale = 1 + z**2 / count
    centre = (share + z**2 / (2 * count)) / scale
    half = z / scale * math.sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
    return Interval(share, max(0.0, centre - half), min(1.0, centre + half), coverage)


def t_quantile(probability: float, freedom: int) -> float:
    """The quantile of Student's t.

    Args:
        probability: in (0.5, 1).
        freedom: degrees of freedom, at least 1.
    """
    low, high = 0.0, 1.0
    while t_within(high, freedom) < 2 * probability - 1:
        high *= 2
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if t_within(middle, freedom) < 2 * probability - 1 else (low, middle)
    return high


def t_within(t: float, freedom: int) -> float:
    """P(|T| < t) of Student's t as a finite sum (Abramowitz and Stegun, 26.7.3 and 26.7.4).

    Args:
        t: at least 0.
        freedom: degrees of freedom, at least 1.
    """
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

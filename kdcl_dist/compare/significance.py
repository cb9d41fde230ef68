"""Whether a paired difference may be chance: a p-value of each, and Holm's correction for many of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, stdev

from kdcl_dist.utils.intervals import t_within

__all__ = ["holm", "sign_test", "t_test"]


def t_test(differences: Sequence[float]) -> float:
    """The two-sided p-value of the paired t test (Student, 1908), exact for normal errors.

    NaN for fewer than two differences. Differences that are all equal have no spread to judge by: accuracies
    are counts of test samples, so that two may well be equal by chance. Then it is that of the sign test.
    """
    count = len(differences)
    if count < 2:
        return math.nan
    mean, error = fmean(differences), stdev(differences) / math.sqrt(count)
    if error <= 1e-9 * abs(mean):
        return sign_test(differences)
    return max(0.0, 1 - t_within(abs(mean) / error, count - 1))


def sign_test(differences: Sequence[float]) -> float:
    """The two-sided p-value of the sign test of the median, for any distribution; zeros are left out.

    It belongs to the interval of `median_interval`: both count how many values lie on one side. NaN for fewer
    than two differences.
    """
    if len(differences) < 2:
        return math.nan
    signs = [value > 0 for value in differences if value]
    fewer = min(signs.count(True), signs.count(False))
    return min(1.0, 2 * sum(math.comb(len(signs), k) for k in range(fewer + 1)) / 2.0 ** len(signs))


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values adjusted for their number (Holm, Scand. J. Statist. 6, 1979), in the same order.

    Those of at most a level hold together: with that probability at most, any of them is chance. With m
    p-values the i-th smallest, i from 0, is multiplied by m - i, and none is below the one before. NaN stays
    and does not count.
    """
    finite = sorted((p, index) for index, p in enumerate(p_values) if not math.isnan(p))
    adjusted, before = list(p_values), 0.0
    for rank, (p, index) in enumerate(finite):
        adjusted[index] = before = max(before, min(1.0, (len(finite) - rank) * p))
    return adjusted

"""Confidence intervals against SciPy."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from kdcl_dist.utils.intervals import (
    NO_INTERVAL,
    mean_interval,
    median_interval,
    share_interval,
    t_quantile,
)


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 5, 9, 10, 29, 100])
@pytest.mark.parametrize("probability", [0.6, 0.9, 0.975, 0.9995])
def test_t_quantile_equals_scipy(freedom: int, probability: float) -> None:
    assert t_quantile(probability, freedom) == pytest.approx(stats.t.ppf(probability, freedom), rel=1e-9)


def test_mean_interval_equals_scipy() -> None:
    values = [70.1, 71.3, 69.9, 72.0]
    found = mean_interval(values)
    low, high = stats.t.interval(0.95, 3, loc=np.mean(values), scale=stats.sem(values))
    assert found == pytest.approx((np.mean(values), low, high, 0.95))
    assert found.half_width == pytest.approx((high - low) / 2)


@pytest.mark.parametrize("count", [2, 5, 6, 9, 10, 30])
def test_median_interval_covers_as_often_as_it_says(count: int) -> None:
    rng = np.random.default_rng(0)
    found = median_interval(list(range(count)))
    k = int(found.low)
    draws = np.sort(rng.exponential(size=(20000, count)), axis=1)
    covered = ((draws[:, k] <= math.log(2)) & (draws[:, count - 1 - k] >= math.log(2))).mean()
    assert covered == pytest.approx(found.coverage, abs=0.01)
    assert found.value == (count - 1) / 2
    if count >= 6:
        assert found.coverage >= 0.95
        assert 1 - 2 * stats.binom.cdf(k + 1, count, 0.5) < 0.95  # one narrower covers too little


def test_median_interval_does_not_depend_on_the_order() -> None:
    assert median_interval([3.0, 1.0, 2.0, 9.0]) == median_interval([9.0, 3.0, 2.0, 1.0])


def test_one_value_has_no_interval() -> None:
    for interval in (mean_interval, median_interval):
        assert interval([3.0]).value == 3.0
        assert math.isnan(interval([3.0]).low)
        assert math.isnan(interval([3.0]).half_width)
        with pytest.raises(ValueError, match="values"):
            interval([])
    assert all(math.isnan(part) for part in NO_INTERVAL)


@pytest.mark.parametrize(("share", "count"), [(0.0, 7), (1.0, 23), (0.5, 2), (0.913, 1000)])
def test_share_interval_equals_scipy(share: float, count: int) -> None:
    hits = round(share * count)
    expected = stats.binomtest(hits, count).proportion_ci(0.9, method="wilson")
    found = share_interval(hits / count, count, 0.9)
    assert found == pytest.approx((hits / count, expected.low, expected.high, 0.9), abs=1e-12)


@pytest.mark.parametrize(("share", "count"), [(0.5, 0), (-0.1, 3), (1.1, 3), (math.nan, 3)])
def test_share_interval_needs_a_share_of_samples(share: float, count: int) -> None:
    with pytest.raises(ValueError, match="at least one"):
        share_interval(share, count)

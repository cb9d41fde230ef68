"""The tests of paired differences against SciPy, and Holm's correction against R's p.adjust."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from kdcl_dist.compare.significance import holm, sign_test, t_test


@pytest.mark.parametrize("count", [2, 3, 5, 6, 10, 31])
@pytest.mark.parametrize("shift", [0.0, 0.3, -2.0])
def test_p_values_equal_scipy(count: int, shift: float) -> None:
    differences = (np.random.default_rng(count).normal(shift, 1, count)).tolist()
    assert t_test(differences) == pytest.approx(stats.ttest_1samp(differences, 0).pvalue, rel=1e-6)
    positive = sum(value > 0 for value in differences)
    assert sign_test(differences) == pytest.approx(stats.binomtest(positive, count).pvalue)


def test_p_values_of_special_cases() -> None:
    assert math.isnan(t_test([0.3]))
    assert math.isnan(sign_test([0.3]))
    assert t_test([0.0, 0.0]) == 1.0
    # Equal gains have no spread: they count by their number, also where their floats differ in the last bits.
    assert (t_test([0.5, 0.5]), t_test([0.1 + 0.2, 0.3, 0.3])) == (0.5, 0.25)
    assert sign_test([0.0, 0.0]) == 1.0
    assert sign_test([1.0, 2.0, 0.0, 3.0]) == pytest.approx(2 / 8)  # the zero is left out


def test_holm_equals_r() -> None:
    # p.adjust(c(0.01, 0.04, 0.03, 0.005), "holm"), and the same with NA and with equal values.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.01, math.nan, 0.04]) == pytest.approx([0.02, math.nan, 0.04], nan_ok=True)
    assert holm([0.5, 0.5, 0.001]) == pytest.approx([1.0, 1.0, 0.003])
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8), st.sampled_from([0.01, 0.05, 0.5]))
def test_holm_rejects_what_the_steps_reject(p_values: list[float], level: float) -> None:
    """The procedure in steps: the smallest against level / m, the next against level / (m - 1), ..."""
    rejected = set()
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        if (len(p_values) - rank) * p_values[index] > level:
            break
        rejected.add(index)
    assert {i for i, p in enumerate(holm(p_values)) if p <= level} == rejected

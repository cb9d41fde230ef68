"""Random numbers: the same for the same key, independent for different keys, and frozen."""

from __future__ import annotations

from collections import Counter
from itertools import product

import numpy as np
import pytest
from scipy import stats

from kdcl_dist.utils.seeding import Purpose, derive, draws, permutation


def test_values_are_frozen() -> None:
    """Other values would change the result of every recipe."""
    assert derive(0, Purpose.STUDENT, 0) == 2918264622725855778
    assert derive(2**63 - 1, Purpose.VIEW, 3, 5, 7) == 7485835001880235335
    assert permutation(8, 0, Purpose.EPOCH_ORDER, 0).tolist() == [7, 6, 1, 3, 5, 2, 4, 0]
    random = draws(0, Purpose.MIXING, 3)
    assert random.random_sample() == 0.6654966394373497
    assert random.beta(0.2, 0.2) == pytest.approx(0.2764801835339094, rel=1e-12)


def test_purposes_are_frozen() -> None:
    assert {purpose.name: int(purpose) for purpose in Purpose} == {
        "STUDENT": 1,
        "HOLDOUT": 2,
        "EPOCH_ORDER": 3,
        "WINDOW_ORDER": 4,
        "VIEW": 5,
        "INITIAL_WEIGHTS": 6,
        "STEP": 7,
        "LOGIT_NOISE": 8,
        "STUDENT_WITH_OWN_SEED": 9,
        "TEST_NOISE": 10,
        "VALIDATION": 11,
        "MIXING": 12,
        "PARTNER": 13,
        "READING": 14,
        "SUBSET": 15,
        "SHARE": 16,
    }


def test_every_key_matters() -> None:
    keys = list(product((0, 1, 2**62), (Purpose.STEP, Purpose.VIEW), (0, 1), (0, 1, 70_000)))
    assert len({derive(*key) for key in keys}) == len(keys)
    assert len({permutation(50, *key).tobytes() for key in keys}) == len(keys)


def test_the_number_of_keys_matters() -> None:
    assert derive(3, Purpose.STEP) != derive(3, Purpose.STEP, 1) != derive(3, Purpose.STEP, 1, 1)


def test_seeds_have_63_bits() -> None:
    seeds = np.array([derive(0, Purpose.STEP, step) for step in range(2000)])
    assert seeds.min() >= 0
    bits = (seeds[:, None] >> np.arange(63)) & 1
    assert np.abs(bits.mean(axis=0) - 0.5).max() < 0.06


def test_a_key_must_not_be_negative() -> None:
    with pytest.raises(ValueError, match="negative"):
        derive(0, Purpose.STEP, -1)


@pytest.mark.parametrize("size", [0, 1, 2, 100])
def test_a_permutation_has_every_number_once(size: int) -> None:
    found = permutation(size, 5, Purpose.HOLDOUT, 1)
    assert found.dtype == np.int64
    assert sorted(found.tolist()) == list(range(size))
    assert np.array_equal(found, permutation(size, 5, Purpose.HOLDOUT, 1))


def test_all_permutations_are_equally_likely() -> None:
    counts = Counter(tuple(permutation(3, 0, Purpose.EPOCH_ORDER, i).tolist()) for i in range(3000))
    assert len(counts) == 6
    assert stats.chisquare(list(counts.values())).pvalue > 0.001

"""Random numbers as pure functions of their purpose.

Each draw has a key (seed, purpose, epoch, ...), and no generator carries state from one step to the next. So
a resumption, a new process or another number of loader workers changes no draw. NumPy's compatibility policy
freezes `SeedSequence`, the raw output of `Philox` and the distributions of `RandomState`: a recipe gives the
same draws with every NumPy.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np
import numpy.typing as npt

__all__ = ["Purpose", "derive", "draws", "permutation"]


class Purpose(IntEnum):
    """The purpose of a draw: the first key after the seed, so that no two purposes share a draw."""

    STUDENT = 1
    HOLDOUT = 2
    EPOCH_ORDER = 3
    WINDOW_ORDER = 4
    VIEW = 5
    INITIAL_WEIGHTS = 6
    STEP = 7
    LOGIT_NOISE = 8
    STUDENT_WITH_OWN_SEED = 9
    TEST_NOISE = 10
    VALIDATION = 11
    MIXING = 12
    PARTNER = 13
    READING = 14
    SUBSET = 15
    SHARE = 16


def derive(seed: int, purpose: Purpose, *keys: int) -> int:
    """A 63-bit seed that depends on all arguments; all are non-negative integers."""
    state = np.random.SeedSequence((seed, int(purpose), *keys)).generate_state(1, np.uint64)
    return int(state[0] >> np.uint64(1))


def permutation(size: int, seed: int, purpose: Purpose, *keys: int) -> npt.NDArray[np.int64]:
    """A permutation of range(size) that depends on all arguments: int64, shape (size,)."""
    sequence = np.random.SeedSequence((seed, int(purpose), *keys))
    draws = np.random.Philox(sequence).random_raw(size)
    return np.argsort(draws, kind="stable")


def draws(seed: int, purpose: Purpose, *keys: int) -> np.random.RandomState:
    """A generator of draws from distributions that depend on all arguments."""
    sequence = np.random.SeedSequence((seed, int(purpose), *keys))
    return np.random.RandomState(np.random.Philox(sequence))

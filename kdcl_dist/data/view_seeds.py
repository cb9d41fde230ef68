"""The seeds of a batch of views at once: the values of `derive`, in a tenth of its time.

NumPy's `SeedSequence` is a fixed hash of 32-bit words (O'Neill, 2015, "Developing a seed_seq alternative"),
frozen by NumPy's compatibility policy. In this version of it the last word is an array.

Shapes: B batch.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from kdcl_dist.utils.seeding import Purpose

__all__ = ["view_seeds"]

Words = npt.NDArray[np.uint32]

POOL_WORDS = 4
INIT_A, MULT_A = 0x43B0D7E5, 0x931E8875
INIT_B, MULT_B = 0x8B51F9DD, 0x58F38DED
MIX_LEFT, MIX_RIGHT = np.uint32(0xCA01F9DD), np.uint32(0x4973F715)
MASK, SHIFT = 0xFFFFFFFF, np.uint32(16)


def view_seeds(student: int, epoch: int, ids_B: npt.NDArray[np.int64]) -> list[int]:
    """`view_seed(student, epoch, sample_id)` of each sample; ids are below 2**32."""
    words_B = ids_B.astype(np.uint32)
    pool = _mix([*_words(student), *_words(Purpose.VIEW), *_words(epoch)], words_B)
    hashed = _Hash(INIT_B, MULT_B)
    low_B, high_B = (hashed(word_B).astype(np.uint64) for word_B in pool[:2])
    seeds_B: list[int] = ((low_B | high_B << np.uint64(32)) >> np.uint64(1)).tolist()
    return seeds_B


def _words(number: int) -> list[int]:
    """A non-negative integer as 32-bit words, the lowest first."""
    return [number >> shift & MASK for shift in range(0, max(1, number.bit_length()), 32)]


def _mix(first: list[int], last_B: Words) -> list[Words]:
    """The pool after all words are mixed in; zeros fill up a short input."""
    entropy = [*(np.full_like(last_B, word) for word in first), last_B]
    entropy += [np.zeros_like(last_B)] * (POOL_WORDS - len(entropy))
    hashed = _Hash(INIT_A, MULT_A)
    pool = [hashed(word_B) for word_B in entropy[:POOL_WORDS]]
    for source in range(POOL_WORDS):
        for target in range(POOL_WORDS):
            if source != target:
                pool[target] = _stir(pool[target], hashed(pool[source]))
    for word_B in entropy[POOL_WORDS:]:
        pool = [_stir(each, hashed(word_B)) for each in pool]
    return pool


def _stir(left_B: Words, right_B: Words) -> Words:
    return _fold(MIX_LEFT * left_B - MIX_RIGHT * right_B)


def _fold(word_B: Words) -> Words:
    folded_B: Words = word_B ^ (word_B >> SHIFT)
    return folded_B


class _Hash:
    """A hash of words; each call changes its constant."""

    def __init__(self, constant: int, factor: int) -> None:
        self.constant, self.factor = constant, factor

    def __call__(self, word_B: Words) -> Words:
        mixed_B = word_B ^ np.uint32(self.constant)
        self.constant = self.constant * self.factor & MASK
        return _fold(mixed_B * np.uint32(self.constant))

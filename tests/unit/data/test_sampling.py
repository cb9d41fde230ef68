"""Order of samples and seeds of views: pure functions with frozen values."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdcl_dist.data import sampling
from kdcl_dist.data.view_seeds import view_seeds
from kdcl_dist.errors import DataError

SETTINGS = settings(max_examples=50, derandomize=True)


def test_streams_are_frozen() -> None:
    """These values are in everyone's results: a change of them needs a very good reason."""
    ids = np.arange(10)
    assert sampling.epoch_steps(ids, 4, 0, 0).tolist() == [[7, 6, 1, 3], [5, 2, 8, 4]]
    assert sampling.own_order(np.array([5, 6, 7, 8]), 1, 0, 3).tolist() == [6, 8, 5, 7]
    assert sampling.student_seed(0, 0, None) == 2918264622725855778
    assert sampling.student_seed(0, 0, 0) == 5949034261645103510
    assert sampling.view_seed(1, 2, 3) == 956993105522498718
    train, held = sampling.split_holdout(np.array([0, 0, 0, 1, 1, 1]), 1, 0)
    assert (train.tolist(), held.tolist()) == ([0, 1, 4, 5], [2, 3])
    assert sampling.subset(np.array([0, 0, 0, 1, 1, 1]), 2, 0).tolist() == [0, 2, 3, 5]
    assert sampling.class_parts(np.array([0, 0, 0, 1, 1, 1]), 0.3, 0.7, 0).tolist() == [0, 4]
    passes = sampling.own_passes(np.array([5, 6, 7, 8, 9]), 3, 2, 1, 0)
    assert [ids.tolist() for ids in passes] == [[6, 9], [5, 7], [6, 8]]
    train, val = sampling.split_validation(np.array([0, 0, 0, 1, 1, 1]), 0.4, 0)
    assert (train.tolist(), val.tolist()) == ([1, 2, 4, 5], [0, 3])


@SETTINGS
@given(st.integers(1, 200), st.integers(1, 50), st.integers(0, 5), st.integers(0, 5))
def test_an_epoch_takes_each_sample_once_at_most(count: int, batch: int, seed: int, epoch: int) -> None:
    ids = np.arange(count) * 3
    if batch > count:
        with pytest.raises(DataError, match=f"batch_size is {batch}"):
            sampling.epoch_steps(ids, batch, seed, epoch)
        return
    steps = sampling.epoch_steps(ids, batch, seed, epoch)
    assert steps.shape == (count // batch, batch)
    assert len(np.unique(steps)) == steps.size
    assert np.isin(steps, ids).all()
    for student in (1, 2):
        own = sampling.own_order(steps[0], student, epoch, 0)
        assert sorted(own) == sorted(steps[0])
    assert np.concatenate(sampling.batches_of(ids, batch)).tolist() == ids.tolist()


@SETTINGS
@given(st.lists(st.integers(0, 3), min_size=1, max_size=60), st.integers(0, 5))
def test_the_holdout_takes_as_many_of_each_class(labels: list[int], per_class: int) -> None:
    array = np.array(labels)
    if per_class >= np.unique(array, return_counts=True)[1].min():
        with pytest.raises(DataError, match="holdout_per_class"):
            sampling.split_holdout(array, per_class, 0)
        return
    train, held = sampling.split_holdout(array, per_class, 0)
    assert sorted([*train, *held]) == list(range(len(labels)))
    assert all((array[held] == label).sum() == per_class for label in np.unique(array))


def test_students_and_epochs_differ() -> None:
    ids = np.arange(64)
    orders = {tuple(sampling.own_order(ids, s, e, t)) for s in range(3) for e in range(3) for t in range(3)}
    assert len(orders) == 27
    seeds = {sampling.student_seed(0, i, None) for i in range(5)} | {
        sampling.student_seed(0, 0, i) for i in range(5)
    }
    assert len(seeds) == 10


def test_seeds_of_a_batch_are_those_of_its_samples() -> None:
    ids = np.array([0, 1, 77, 2**31, 2**32 - 1])
    for student, epoch in itertools.product((0, 5, 2**32 - 1, 2**32, 2**63 - 1), (0, 3, 2**33)):
        wanted = [sampling.view_seed(student, epoch, int(i)) for i in ids]
        assert view_seeds(student, epoch, ids) == wanted
    assert view_seeds(1, 2, ids[:0]) == []


@SETTINGS
@given(
    st.lists(st.integers(0, 3), min_size=1, max_size=60),
    st.floats(0.01, 0.99),
    st.integers(0, 3),
    st.integers(0, 3),
)
def test_validation_takes_the_same_share_of_each_class_before_the_held_out(
    labels: list[int], fraction: float, per_class: int, seed: int
) -> None:
    labels_N = np.array(labels)
    counts = {label: labels.count(label) for label in set(labels)}
    taken = {label: min(count - 1, int(fraction * count + 0.5)) for label, count in counts.items()}
    if not any(taken.values()):
        with pytest.raises(DataError, match=f"val_fraction is {fraction:g}, .* {len(counts)} classes"):
            sampling.split_samples(labels_N, per_class, fraction, seed)
        return
    if short := [label for label in sorted(counts) if per_class >= counts[label] - taken[label]]:
        with pytest.raises(
            DataError, match=f"class {short[0]} has only {counts[short[0]] - taken[short[0]]} "
        ):
            sampling.split_samples(labels_N, per_class, fraction, seed)
        return
    train, held, val = sampling.split_samples(labels_N, per_class, fraction, seed)
    assert sorted([*train, *held, *val]) == list(range(len(labels)))
    assert {label: labels_N[val].tolist().count(label) for label in counts} == taken
    assert {label: labels_N[held].tolist().count(label) for label in counts} == dict.fromkeys(
        counts, per_class
    )
    assert val.tolist() == sampling.split_samples(labels_N, 0, fraction, seed)[2].tolist()


@SETTINGS
@given(st.lists(st.integers(0, 3), min_size=1, max_size=60), st.integers(1, 5), st.integers(0, 5))
def test_a_subset_has_as_many_of_each_class_and_those_of_a_smaller_one(
    labels: list[int], per_class: int, seed: int
) -> None:
    labels_N = np.array(labels)
    counts = {label: labels.count(label) for label in set(labels)}
    if short := [label for label in sorted(counts) if per_class > counts[label]]:
        with pytest.raises(
            DataError,
            match=f"train_per_class is {per_class}, but class {short[0]} has only {counts[short[0]]}",
        ):
            sampling.subset(labels_N, per_class, seed)
        return
    ids = sampling.subset(labels_N, per_class, seed)
    assert ids.tolist() == sorted(set(ids.tolist()))
    assert {label: labels_N[ids].tolist().count(label) for label in counts} == dict.fromkeys(
        counts, per_class
    )
    assert set(sampling.subset(labels_N, per_class - 1, seed) if per_class > 1 else ()) <= set(ids)
    assert sampling.subset(labels_N, None, seed).tolist() == list(range(len(labels)))


@SETTINGS
@given(st.lists(st.integers(0, 3), max_size=60), st.lists(st.integers(0, 100), max_size=4), st.integers(0, 5))
def test_parts_that_adjoin_have_each_sample_once(labels: list[int], ends: list[int], seed: int) -> None:
    array, shares = np.array(labels, np.int64), [0, *(end / 100 for end in sorted(ends)), 1]
    parts = [sampling.class_parts(array, *pair, seed) for pair in itertools.pairwise(shares)]
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(labels)))
    for part, (low, high) in zip(parts, itertools.pairwise(shares), strict=True):
        assert part.tolist() == sorted(part)
        for label in set(labels):
            assert abs((array[part] == label).sum() - (high - low) * labels.count(label)) <= 1


@SETTINGS
@given(st.integers(1, 40), st.integers(1, 12), st.integers(1, 30), st.integers(0, 3))
def test_a_student_passes_through_its_own_samples_again(
    count: int, batch: int, steps: int, epoch: int
) -> None:
    if batch > count:
        return
    own = np.arange(count) * 3
    found = list(sampling.own_passes(own, steps, batch, 7, epoch))
    assert [len(ids) for ids in found] == [batch] * steps
    per_pass = count // batch
    for first in range(0, steps, per_pass):
        seen = np.concatenate(found[first : first + per_pass])
        assert len(np.unique(seen)) == len(seen)
        assert np.isin(seen, own).all()
    for start in range(steps):
        rest = list(sampling.own_passes(own, steps, batch, 7, epoch, start))
        assert np.array_equal(np.stack(rest), np.stack(found[start:]))

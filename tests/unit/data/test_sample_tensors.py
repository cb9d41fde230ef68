"""Samples of several tensors, how they become batches, and their layout."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from kdcl_dist.data.layout import Layout
from kdcl_dist.data.samples import Collate, forward, like, map_tensors, named, rows

ALONE, PAIR = torch.arange(3), (torch.arange(3), torch.ones(2))
DICT = {"x": torch.arange(3), "y": torch.ones(2)}


@pytest.mark.parametrize("sample", [ALONE, PAIR, DICT], ids=["tensor", "tuple", "dict"])
def test_forms_are_kept(sample: Any) -> None:
    doubled = map_tensors(sample, lambda tensor: 2 * tensor)
    assert type(doubled) is type(sample)
    expected = {name: 2 * tensor for name, tensor in named(sample).items()}
    for found in (doubled, like(sample, expected)):
        assert list(named(found)) == list(named(sample))
        assert all(torch.equal(named(found)[name], tensor) for name, tensor in expected.items())
    batch = Collate()([sample, sample])
    assert type(batch) is type(sample)
    assert rows(batch) == 2


def test_tensors_are_the_arguments_of_a_call() -> None:
    def network(*args: torch.Tensor, **kwargs: torch.Tensor) -> tuple[Any, Any]:
        return args, kwargs

    assert forward(network, ALONE) == ((ALONE,), {})
    assert forward(network, PAIR) == (PAIR, {})
    assert forward(network, DICT) == ((), DICT)


def test_sequences_are_padded_as_by_torch() -> None:
    sequences = [torch.randn(length, 3) for length in (2, 5, 1)]
    found = Collate({"0": -1.5})([(sequence,) for sequence in sequences])
    assert torch.equal(found[0], pad_sequence(sequences, batch_first=True, padding_value=-1.5))
    plain = Collate()(list(sequences))
    assert torch.equal(plain, pad_sequence(sequences, batch_first=True))


def test_a_stated_length_pads_and_cuts_the_tensors_with_values_only() -> None:
    samples = [{"t": torch.arange(1, n), "x": torch.ones(4)} for n in (3, 9)]
    found = Collate({"t": 7}, length=4)(samples)
    assert found["t"].tolist() == [[1, 2, 7, 7], [1, 2, 3, 4]]
    assert found["x"].shape == (2, 4)
    same = Collate({"t": 7}, length=4)([samples[0], samples[0]])
    assert same["t"].shape == (2, 4), "equal lengths are padded too"


@pytest.mark.parametrize(
    ("samples", "collate", "words"),
    [
        ([{"x": torch.ones(2, 3)}, {"x": torch.ones(2, 4)}], Collate(), r"x is float32 of shape \(2, 3\)"),
        ([torch.ones(2), torch.ones(2).long()], Collate(), "input is float32 .* int64"),
        ([{"x": torch.ones(2)}], Collate({"y": 0}), "values names 'y'"),
        ([torch.arange(2), torch.arange(3)], Collate({"input": 0.5}), "0.5"),
        ([torch.tensor(1), torch.tensor(2)], Collate({"input": 0}, length=3), "without axes"),
    ],
)
def test_samples_that_make_no_batch(samples: Any, collate: Collate, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        collate(samples)


def test_a_layout_holds_what_samples_share() -> None:
    one = Layout.of({"t": torch.arange(3), "x": torch.ones(2, 5)})
    assert str(one) == "dict of t: int64 (3), x: float32 (2, 5)"
    two = one.joined(Layout.of({"t": torch.arange(4), "x": torch.ones(2, 5)}))
    assert str(two) == "dict of t: int64 (any), x: float32 (2, 5)"
    assert two.joined(one) == two
    assert [column.features for column in two.columns] == [1, 5]


@pytest.mark.parametrize(
    "other",
    [
        {"x": torch.ones(3, 2)},
        {"x": torch.ones(3)},
        {"x": torch.ones(3, 4).double()},
        {"y": torch.ones(3, 4)},
        {"x": torch.ones(3, 4), "y": torch.ones(1)},
        (torch.ones(3, 4),),
        torch.ones(3, 4),
    ],
    ids=str,
)
def test_layouts_that_differ(other: Any) -> None:
    one = Layout.of({"x": torch.ones(3, 4)})
    with pytest.raises(ValueError, match=r"x: float32 \(.*\) and"):
        one.joined(Layout.of(other))


@pytest.mark.parametrize(
    "sample", [3, [torch.ones(2)], {}, (), {"x": [1, 2]}, {1: torch.ones(2)}, nn.Identity()], ids=repr
)
def test_what_is_no_sample(sample: Any) -> None:
    with pytest.raises(ValueError, match=r"^an? "):
        Layout.of(sample)

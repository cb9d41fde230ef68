"""Rows that are brought into order as they arrive."""

from __future__ import annotations

import pytest
import torch

from kdcl_dist.coordinator.aligned_logits import Aligned, Arrivals, align
from kdcl_dist.errors import LabelMismatch, MisalignedIds
from kdcl_dist.exchange.message import Contribution

NAMES = ["a", "b", "c"]


def parts_of(count: int = 6) -> list[Contribution]:
    """The same samples in another order for each student; the logits of a sample begin with its id."""
    generator, parts = torch.Generator().manual_seed(0), []
    for _ in NAMES:
        ids_B = torch.randperm(count, generator=generator) + 10
        logits_BC = torch.cat([ids_B[:, None].float(), torch.randn(count, 3, generator=generator)], dim=1)
        parts.append(Contribution(ids_B, ids_B % 4, logits_BC))
    return parts


def same(one: Aligned, other: Aligned) -> bool:
    tensors = zip(one[:3], other[:3], strict=True)
    ages = one.age is other.age is None or torch.equal(one.age, other.age)
    return all(torch.equal(a, b) for a, b in tensors) and bool(ages) and one.bad == other.bad


@pytest.mark.parametrize("early", [[], [1], [2, 0], [0, 1, 2]])
def test_it_does_not_matter_what_arrived_early(early: list[int]) -> None:
    parts, arrivals = parts_of(), Arrivals(3)
    parts[1].logits[3, 2] = torch.nan
    for index in early:
        arrivals.add(index, parts[index])
    found = align(parts, [0, 1, 2], NAMES, arrivals)
    assert same(found, align(parts, [0, 1, 2], NAMES))
    assert found.ids.tolist() == list(range(10, 16))
    assert found.logits[0, :, 0].tolist() == list(range(10, 16))
    assert found.bad == (1,)


def test_absent_students_have_no_logits() -> None:
    parts = parts_of()
    parts[1] = Contribution(parts[1].ids[:0], parts[1].labels[:0], parts[1].logits[:0])
    arrivals = Arrivals(3)
    arrivals.add(2, parts[2])
    found = align(parts, [0, 2], NAMES, arrivals)
    assert same(found, align(parts, [0, 2], NAMES))
    assert not found.logits[1].any()


@pytest.mark.parametrize("early", [[], [0, 1, 2]])
def test_the_odd_student_is_named(early: list[int]) -> None:
    for odd in range(3):
        parts, labels, fewer = parts_of(), parts_of(), parts_of()
        parts[odd].ids[2] = 99
        labels[odd].labels[2] += 1
        fewer[odd] = Contribution(*(column[:4] for column in fewer[odd]))
        for wrong, error in ((parts, MisalignedIds), (labels, LabelMismatch), (fewer, MisalignedIds)):
            arrivals = Arrivals(3)
            for index in early:
                arrivals.add(index, wrong[index])
            with pytest.raises(error) as raised:
                align(wrong, [0, 1, 2], NAMES, arrivals)
            assert raised.value.student == NAMES[odd]


def test_a_student_may_send_more_than_the_others() -> None:
    parts = parts_of()
    more = parts_of(9)[0]
    found = align([more, *parts[1:]], [0, 1, 2], NAMES)
    assert found.ids.tolist() == list(range(10, 16))
    assert found.logits[0, :, 0].tolist() == list(range(10, 16))

"""Messages, their alignment, and the checks of what a cohort sends."""

from __future__ import annotations

import pytest
import torch
from groups import NAMES, RUN

from kdcl_dist.config.recipe_file import parse_recipe
from kdcl_dist.config.rounds import Kind, Round
from kdcl_dist.config.student import Worker
from kdcl_dist.coordinator.aggregator import Aggregator
from kdcl_dist.coordinator.validation import check_messages
from kdcl_dist.errors import (
    ForeignMessage,
    KdclError,
    LabelMismatch,
    MisalignedIds,
    NonFiniteLogits,
    ShapeMismatch,
    StaleContribution,
)
from kdcl_dist.exchange.alignment import OwnRows, rows_of
from kdcl_dist.exchange.message import Flag, Message, MessageLayout, StepMetrics

ROUND = Round(Kind.TRAIN, 0, 7)
WORKERS = [Worker(index, 0, name) for index, name in enumerate(NAMES)]


def message(sender: int, ids: list[int], labels: list[int] | None = None) -> Message:
    """A good message of round 7."""
    found = Message(MessageLayout(8, 3))
    found.set_identity(run=RUN, generation=1, sender=sender)
    found.reset(Kind.TRAIN, 7)
    logits = torch.tensor([[float(i), sender, 1.0] for i in ids]).half()
    found.write_rows(torch.tensor(ids), logits, torch.tensor(labels or [i % 3 for i in ids]))
    return found


def coordinator(*names: str) -> Aggregator:
    students = ", ".join(f"{{name: {name}, model: mlp}}" for name in names or NAMES)
    return Aggregator(parse_recipe(f"data: {{train: x, test: x}}\nstudents: [{students}]"))


def test_a_message_is_views_over_one_buffer() -> None:
    sent = message(1, [5, 2])
    sent.header["metrics"][:] = StepMetrics(step=6, loss=0.5)
    got = Message(sent.layout, sent.buffer.clone())
    ids, labels, logits = got.contribution()
    assert ids.tolist() == [5, 2]
    assert labels.tolist() == [2, 2]
    assert logits.tolist() == [[5, 1, 1], [2, 1, 1]]
    assert (got.step_metrics.step, got.step_metrics.loss) == (6, 0.5)
    assert got.layout.nbytes % 8 == 0
    assert int(got.header["run"]) == RUN


@pytest.mark.parametrize(("rows", "classes"), [(9, 3), (2, 4), (2, 2)])
def test_what_does_not_fit_the_layout_is_refused(rows: int, classes: int) -> None:
    with pytest.raises(ShapeMismatch, match=f"{classes}"):
        message(0, [1]).write_rows(torch.arange(rows), torch.zeros(rows, classes))


def test_rows_are_matched_by_id() -> None:
    ids = torch.tensor([9, 4, 7])
    assert rows_of(torch.tensor([7, 9, 4]), ids).tolist() == [2, 0, 1]
    assert rows_of(torch.tensor([4]), ids).tolist() == [1]
    for wanted, have in (([3], [9, 4]), ([1], []), ([1], [1, 1]), ([10], [9])):
        with pytest.raises(MisalignedIds):
            rows_of(torch.tensor(wanted), torch.tensor(have, dtype=torch.int64))


def test_prepared_rows_are_those_matched_by_id() -> None:
    own = torch.tensor([7, 9, 4])
    for ids in ([4, 7, 9], [9, 4, 7], [1, 4, 7, 9]):
        assert OwnRows(own).among(torch.tensor(ids)).tolist() == [ids.index(each) for each in own.tolist()]
    for ids in ([4, 7, 8], [4, 7], [4, 7, 9, 9]):
        with pytest.raises(MisalignedIds):
            OwnRows(own).among(torch.tensor(ids))


def test_a_new_message_has_nothing_of_the_one_before() -> None:
    used, fresh = message(0, [*range(8)]), message(0, [1])
    fresh.header["rows"] = 0
    used.header["metrics"][:] = StepMetrics(step=6, loss=0.5)
    used.header["bytes"], used.header["digest"], used.header["flags"] = 5, 7, Flag.STOP
    used.exclude([0, 9])
    assert [student for student in range(20) if used.excludes(student)] == [0, 9]
    assert used.has(Flag.STOP)
    used.reset(Kind.TRAIN, 7)
    assert used.header.tobytes() == fresh.header.tobytes()
    assert not len(used.contribution().ids)


def test_alignment_does_not_depend_on_the_order_of_rows() -> None:
    one = coordinator().align([message(0, [3, 1, 2]), message(1, [1, 2, 3]), message(2, [2, 3, 1])])
    assert one.ids.tolist() == [1, 2, 3]
    assert one.logits[:, :, 0].tolist() == [[1, 2, 3]] * 3
    assert one.logits[:, 0, 1].tolist() == [0, 1, 2]


@pytest.mark.parametrize("odd", [0, 1, 2])
def test_the_odd_one_out_is_named(odd: int) -> None:
    messages = [message(sender, [1, 2, 3]) for sender in range(3)]
    messages[odd] = message(odd, [1, 2, 4])
    with pytest.raises(MisalignedIds, match="other samples") as caught:
        coordinator().align(messages)
    assert caught.value.student == NAMES[odd]
    messages[odd] = message(odd, [1, 2, 3], [1, 0, 0])
    with pytest.raises(LabelMismatch, match="sample 2") as labelled:
        coordinator().align(messages)
    assert labelled.value.student == NAMES[odd]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_who_has_numbers_that_are_not_finite_is_left_out(value: float) -> None:
    messages = [message(sender, [1, 2, 3]) for sender in range(3)]
    expected = coordinator("a", "b").answer(coordinator("a", "b").parts(messages[:2]), 0)
    messages[2].logits[1, 0] = value
    answer = coordinator().answer(coordinator().parts(messages), 0)
    assert answer.bad == (2,)
    assert answer.target is not None
    assert expected.target is not None
    assert torch.equal(answer.target.log_probabilities, expected.target.log_probabilities)


def test_bad_numbers_are_borne_for_so_many_steps_in_a_row() -> None:
    one = coordinator()
    for bad in ([2], [2], [], [2], [0, 2]):
        one.check_bad(bad, 2)
    with pytest.raises(NonFiniteLogits, match="3 steps in a row") as caught:
        one.check_bad([2], 2)
    assert caught.value.student == "c"
    with pytest.raises(NonFiniteLogits):
        coordinator().check_bad([0], 0)


def test_a_cast_of_bad_numbers_only_learns_nothing_but_lives() -> None:
    messages = [message(sender, [1, 2, 3]) for sender in range(3)]
    for each in messages:
        each.logits[0, 0] = float("nan")
    answer = coordinator().answer(coordinator().parts(messages), 0)
    assert answer.bad == (0, 1, 2)
    assert answer.target is not None
    assert bool(torch.isfinite(answer.target.log_probabilities).all())


@pytest.mark.parametrize(
    ("field", "value", "error"),
    [
        ("magic", 1, ForeignMessage),
        ("protocol", 9, ForeignMessage),
        ("run", 3, ForeignMessage),
        ("generation", 0, ForeignMessage),
        ("sender", 0, ForeignMessage),
        ("step", 6, StaleContribution),
        ("kind", int(Kind.EVALUATE), StaleContribution),
        ("part", 1, StaleContribution),
        ("classes", 4, ShapeMismatch),
        ("rows", 2, ShapeMismatch),
    ],
)
def test_every_field_of_the_header_is_checked(field: str, value: int, error: type[KdclError]) -> None:
    messages = [message(sender, [1, 2, 3]) for sender in range(3)]
    check_messages(messages, WORKERS, ROUND, (RUN, 1))
    messages[1].header[field] = value
    with pytest.raises(error, match=f"{field} {value} instead of") as caught:
        check_messages(messages, WORKERS, ROUND, (RUN, 1))
    assert (caught.value.student, caught.value.step) == ("b", 7)

"""The record of training logits: what it keeps, and what is told of its size before a run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from cohorts import MakeRecipe
from torch import Tensor

from kdcl_dist.config.rounds import Kind, Round
from kdcl_dist.coordinator import logit_record
from kdcl_dist.coordinator.aggregator import Aggregator, Answer
from kdcl_dist.coordinator.aligned_logits import Aligned
from kdcl_dist.coordinator.logit_record import LogitRecord, record_bytes
from kdcl_dist.coordinator.loop import CoordinatorLoop
from kdcl_dist.data.data_warnings import data_warnings
from kdcl_dist.data.stored_logits import TEST_VIEW, StoredLogits
from kdcl_dist.data.training_data import TrainingData
from kdcl_dist.errors import PreflightError, StudentLost
from kdcl_dist.exchange.message import Contribution, Flag
from kdcl_dist.launch.preflight import bank_memory, checks
from kdcl_dist.launch.preflight.bank_memory import measure_record_memory
from kdcl_dist.launch.preflight.host_report import HostReport
from kdcl_dist.run.events import Event, Note
from kdcl_dist.run.record import update_record
from kdcl_dist.run.run import Run
from kdcl_dist.training import train

N, C = 10, 4
BOTH = ["data.views=2", "distillation.record_logits={students: [a, ensemble]}"]
IDS, LABELS = torch.tensor([2, 5, 7]), torch.tensor([0, 1, 2])


def answer(a: Tensor, b: Tensor, bad: tuple[int, ...] = ()) -> Answer:
    parts = [Contribution(IDS, LABELS, logits) for logits in (a, b)]
    age = torch.zeros(2, 3, dtype=torch.long)
    age[list(bad)] = -1
    known = Aligned(IDS, LABELS, torch.stack([a, b]).nan_to_num(), age if bad else None, bad)
    return Answer(parts, known, None, bad)


@pytest.fixture
def saved(make_run: Callable[..., Run], make_recipe: MakeRecipe) -> Callable[..., StoredLogits]:
    """Reads a file of a record as a run saves it."""
    run = make_run(make_recipe(*BOTH))
    update_record(run.folder, class_names=list("wxyz"), data={"train": "f"})

    def read(record: LogitRecord, name: str) -> StoredLogits:
        assert len(record.save(run)) == len(record.rows)
        file = StoredLogits(f"{run.folder.local}/logits/{name}.arrow")
        file.check()
        return file

    return read


def test_the_last_logits_of_a_view_stay_and_come_back_from_a_checkpoint(
    make_recipe: MakeRecipe, saved: Callable[..., StoredLogits], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logit_record, "PART_BYTES", 40)
    recipe, (a, b, later) = make_recipe(*BOTH), torch.randn(3, 3, C)
    predict, record = Aggregator(recipe).predict, LogitRecord(recipe, N, C)
    record.add(0, answer(b, a), predict)
    record.add(1, answer(b, later), predict)
    record.add(2, answer(a, b), predict)
    at_checkpoint = list(record.parts(9))
    assert len(at_checkpoint) > 4, "in parts"
    record.add(3, answer(later, later), predict)
    again = LogitRecord(recipe, N, C)
    for name, part in at_checkpoint:
        assert name.startswith("_logits-")
        again.load(part)
    found = saved(again, "a")
    assert len(found) == 6
    assert torch.equal(found.rows(IDS.numpy(), 0)[0], a), "of epoch 2, not of epoch 0"
    assert torch.equal(found.rows(IDS.numpy(), 1)[0], b), "not what came after the checkpoint"
    mean = saved(again, "ensemble").rows(IDS.numpy(), 0)[0]
    assert torch.allclose(mean.exp(), (a.softmax(1) + b.softmax(1)) / 2)
    info = found.info
    assert (info.classes, info.data, info.samples, info.views) == (tuple("wxyz"), "f", N, 2)
    assert info.source.endswith(", as it trained")


def test_nothing_is_kept_of_a_student_that_is_bad_or_absent(
    make_recipe: MakeRecipe, saved: Callable[..., StoredLogits]
) -> None:
    recipe, (a, b) = make_recipe(*BOTH), torch.randn(2, 3, C)
    predict, record = Aggregator(recipe).predict, LogitRecord(recipe, N, C)
    record.add(0, answer(a, b), predict)
    bad = answer(torch.full((3, C), torch.nan), 2 * b, bad=(0,))
    record.add(0, bad, predict)
    absent = [Contribution(IDS[:0], LABELS[:0], a[:0]), bad.parts[1]]
    record.add(0, bad._replace(parts=absent, bad=()), predict)
    assert torch.equal(saved(record, "a").rows(IDS.numpy(), 0)[0], a)
    ensemble = saved(record, "ensemble").rows(IDS.numpy(), 0)[0]
    assert torch.allclose(ensemble.exp(), (2 * b).softmax(1)), "of those who are there"


def test_all_numbers_are_finite(make_recipe: MakeRecipe, saved: Callable[..., StoredLogits]) -> None:
    recipe = make_recipe(*BOTH, "distillation.record_logits.dtype=fp16", "distillation.record_logits.top_k=2")
    record, logits = LogitRecord(recipe, N, C), torch.tensor([[9e4, -9e4, -8e4, -7e4]] * 3)
    record.add(0, answer(logits, logits), Aggregator(recipe).predict)
    assert saved(record, "a").rows(IDS.numpy(), 0)[0][0].tolist() == [65504, -65504, -65504, -65504]
    assert saved(record, "ensemble").rows(IDS.numpy(), 0)[0].min() == -104


def test_held_out_samples_are_in_the_test_view(
    make_recipe: MakeRecipe, saved: Callable[..., StoredLogits]
) -> None:
    recipe, (a, b) = make_recipe(*BOTH), torch.randn(2, 3, C)
    record, predict = LogitRecord(recipe, N, C), Aggregator(recipe).predict
    record.add_held_out(Aligned(IDS, LABELS, torch.stack([a, b])), [0, 1], predict)
    record.add_held_out(Aligned(IDS + 1, LABELS, torch.stack([a, b])), [1], predict)
    assert torch.equal(saved(record, "a").rows(IDS.numpy(), TEST_VIEW)[0], a)
    assert not saved(record, "a").rows(IDS.numpy() + 1, TEST_VIEW)[1].any(), "it sent none"
    assert len(saved(record, "ensemble")) == 6


@pytest.mark.parametrize(
    ("invariant", "student", "seed"), [(False, "a", 7), (False, "ensemble", 7), (True, "ensemble", None)]
)
def test_the_views_are_told(
    invariant: bool,
    student: str,
    seed: int | None,
    make_recipe: MakeRecipe,
    saved: Callable[..., StoredLogits],
) -> None:
    crop = {"name": "RandomCrop", "size": 8, "padding": 1}
    recipe = make_recipe(
        *BOTH, f"distillation.invariant={str(invariant).lower()}", "seed=7", f"data.augment=[{crop}]"
    )
    record = LogitRecord(recipe, N, C)
    record.add(0, answer(*torch.randn(2, 3, C)), Aggregator(recipe).predict)
    info = saved(record, student).info
    assert (info.seed, info.augment) == (seed, (crop,))


def test_a_student_that_took_part_in_no_step_has_no_file(
    make_recipe: MakeRecipe, make_run: Callable[..., Run]
) -> None:
    run = make_run(make_recipe(*BOTH))
    assert LogitRecord(run.recipe, N, C).save(run) == [
        f"{name} has taken part in no step, so it has no file" for name in ("a", "ensemble")
    ]
    assert not run.folder.exists("logits")


def test_logits_stay_of_a_step_whose_answer_did_not_reach_all(
    make_recipe: MakeRecipe, saved: Callable[..., StoredLogits]
) -> None:
    """Under `continue` those whom it reached go on with what they learned from them."""

    def broadcast(with_rows: bool) -> None:
        raise StudentLost("b died", student="b")

    recipe, (a, b) = make_recipe(*BOTH), torch.randn(2, 3, C)
    loop, record = object.__new__(CoordinatorLoop), LogitRecord(recipe, N, C)
    loop.exchange = SimpleNamespace(answer=SimpleNamespace(flags=Flag.NONE), broadcast=broadcast)  # type: ignore[assignment]
    loop.state, loop.aggregator = SimpleNamespace(record=record), Aggregator(recipe)  # type: ignore[assignment]
    loop.stopping, loop.step = False, (answer(a, b), 0.1)
    with pytest.raises(StudentLost):
        loop._broadcast(Round(Kind.TRAIN, 0, 0), True)
    assert torch.equal(saved(record, "a").rows(IDS.numpy(), 0)[0], a)


# -- before a run ----------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["", ", dtype: fp16", ", top_k: 2", ", top_k: 9, dtype: fp16"])
def test_its_size_is_told_right(form: str, make_recipe: MakeRecipe) -> None:
    recipe = make_recipe("data.views=3", f"distillation.record_logits={{students: [a, b]{form}}}")
    record = LogitRecord(recipe, N, C)
    arrays = [array for rows in record.rows.values() for array in (rows.there_VN, *rows.fields.values())]
    assert sum(array[1:].nbytes for array in arrays) == record_bytes(recipe, N, C)
    assert record_bytes(make_recipe(), N, C) == 0
    assert not LogitRecord(make_recipe(), N, C).rows


def test_a_lack_of_memory_is_told_before_the_start(
    make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bank_memory, "_free_memory", lambda: 10)
    told: list[Event] = []
    with pytest.raises(PreflightError, match=r"record of logits: .* fewer students or data\.views"):
        train(make_recipe(*BOTH), launcher="local", on_event=told.append)
    size = "a, ensemble, 60 samples, 2 views, 4 classes in fp32: 0.0 MB in each checkpoint and in files"
    assert Note(f"record of logits: {size}, 0.0 MB in memory, 0.0 MB free") in told
    report = HostReport("h", "h", {}, {}, {}, 0.0, None)
    assert checks.record([report]) == []
    full = replace(report, record_memory=measure_record_memory(make_recipe(*BOTH), 60, 4))
    assert "dtype fp16" in checks.record([full])[0].failures[0]
    kept = measure_record_memory(make_recipe(*BOTH, "checkpoint.in_memory_every_steps=3"), 60, 4)
    assert full.record_memory is not None
    assert kept is not None
    assert kept.needed == full.record_memory.needed + 2 * kept.stored, "of two checkpoints in memory"


def test_views_that_no_epoch_shows_are_told(make_recipe: MakeRecipe) -> None:
    """60 samples in steps of 16: an epoch leaves 12 out."""

    def told(*overrides: str) -> list[str]:
        return data_warnings(TrainingData.open(make_recipe(*BOTH, *overrides)))

    (line,) = told()
    assert "no epoch shows 24 of the 120 views of samples" in line
    assert "each epoch without the 12 samples of an incomplete batch" in line
    assert told("epochs=30") == told("batch_size=15") == []
    assert "60 of the 120" in told("batch_size=15", "epochs=1")[0]
    leaves = "students.b.until_epoch=1", "distillation.record_logits.students=[a, b, ensemble]"
    (line,) = told("batch_size=15", *leaves)
    assert "no epoch of b shows 60 of the 120 views" in line
    assert "1 epochs have 2 views" in line

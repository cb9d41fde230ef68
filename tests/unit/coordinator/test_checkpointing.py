"""The coordinator's checkpoints: the state comes back, and the stored keys are those of version 0.1.0."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from cohorts import MakeRecipe

from kdcl_dist.config.rounds import Kind, RunSchedule
from kdcl_dist.config.student import Worker
from kdcl_dist.coordinator import logit_bank
from kdcl_dist.coordinator.checkpointing import CoordinatorState, save_checkpoint, student_parts
from kdcl_dist.exchange.message import Message, MessageLayout, StepMetrics
from kdcl_dist.membership.monitor import COORDINATOR
from kdcl_dist.run.checkpoint import Part, latest, read_part, write_part
from kdcl_dist.run.run import Run

SCHEDULE = RunSchedule(2, 3, 1, 1, 1, 40)
CLASSES = 4


@pytest.fixture
def run(make_recipe: MakeRecipe, make_run: Callable[..., Run]) -> Run:
    return make_run(
        make_recipe("distillation.method=general", "distillation.window=2", "data.holdout_per_class=1")
    )


def trained(run: Run) -> CoordinatorState:
    """A state in which everything that is stored differs from that of a new one."""
    state = CoordinatorState.of(run, SCHEDULE, CLASSES)
    state.aggregator.weights_S = torch.tensor([0.25, 0.75], dtype=torch.float64)
    assert state.aggregator.window_check is not None
    state.aggregator.window_check.sums_S += torch.tensor([5, -7])
    state.aggregator.window_check.interrupt()
    assert state.aggregator.bank is not None
    state.aggregator.bank.put(1, torch.tensor([3, 8]), torch.eye(4)[:2], 2)
    state.metrics.step_metrics([Worker(0, 0, "a")], [StepMetrics(step=2, loss=0.5, task_loss=0.5)])
    state.metrics.results = {"a": {"top1": 0.5}}
    state.metrics.staleness.sums_S3 += 9
    return state


def parts_of(run: Run, step: int, *names: str) -> dict[str, Part]:
    return {name: write_part(run.folder, step, name, {"of": f"{name} {step}"}) for name in names}


def test_a_new_state_begins_at_the_first_step(run: Run) -> None:
    state = CoordinatorState.of(run, SCHEDULE, CLASSES)
    assert (state.position.kind, state.position.step, state.saved) == (Kind.TRAIN, 0, None)
    assert state.aggregator.weights_S.tolist() == [0.5, 0.5]
    state.close()


def test_a_state_comes_back(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logit_bank, "PART_BYTES", 1)
    state = trained(run)
    save_checkpoint(run, state, 3, parts_of(run, 3, "a", "b"))
    saved = latest(run.folder, print)
    assert saved is not None
    assert (saved.step, state.saved) == (3, saved)
    assert list(saved.parts) == ["a", "b", "_bank-00000", "_bank-00001", COORDINATOR]
    again = CoordinatorState.of(replace(run, start=saved), SCHEDULE, CLASSES)
    assert (again.position, again.saved) == (SCHEDULE.first(3), saved)
    assert again.aggregator.weights_S.tolist() == [0.25, 0.75]
    check, bank = again.aggregator.window_check, again.aggregator.bank
    assert check is not None
    assert (check.sums_S.tolist(), check.whole) == ([5, -7], False)
    assert bank is not None
    assert state.aggregator.bank is not None
    for left, right in zip(
        bank.latest(torch.arange(40), 3), state.aggregator.bank.latest(torch.arange(40), 3), strict=True
    ):
        assert torch.equal(left, right)
    assert again.metrics.running() == state.metrics.running() != {}
    assert again.metrics.results == {"a": {"top1": 0.5}}
    assert torch.equal(again.metrics.staleness.sums_S3, state.metrics.staleness.sums_S3)
    state.close()
    again.close()


def test_the_passes_over_validation_samples_come_back(
    make_recipe: MakeRecipe, make_run: Callable[..., Run]
) -> None:
    more = ("data.val_fraction=0.2", "checkpoint.best=top1", "early_stopping={patience: 1}", "epochs=9")
    run, schedule = make_run(make_recipe(*more)), replace(SCHEDULE, epochs=9)
    state = CoordinatorState.of(run, schedule, CLASSES)
    figures = {"loss": 1.0, "top1": 0.5, "top5": 1.0}
    for epoch, names in ((0, "ab"), (1, "ab")):
        state.validation.add(epoch, 3 * epoch + 3, dict.fromkeys(names, figures), list(names))
        assert (state.stop_early() is None) is (epoch == 0)
        save_checkpoint(run, state, 3 * epoch + 3, parts_of(run, 3 * epoch + 3, "a"))
    assert state.schedule.epochs == 2
    saved = latest(run.folder, print)
    again = CoordinatorState.of(replace(run, start=saved), schedule, CLASSES)
    assert again.validation.tests == state.validation.tests
    assert {name: best.step for name, best in again.bests().items()} == {"a": 3}, "b was in no checkpoint"
    assert (again.schedule, again.position) == (state.schedule, state.schedule.first(6))
    assert again.early_end == state.early_end
    assert (
        "after epoch 2 of 9: no student's top1 on validation samples has improved in the last 1 tests"
        in again.early_end
    )
    patient = replace(run, start=saved, recipe=make_recipe(*more, "early_stopping.patience=2"))
    longer = CoordinatorState.of(patient, schedule, CLASSES)
    assert (longer.schedule.epochs, longer.position, longer.early_end) == (9, schedule.first(6), None)
    for each in (state, again, longer):
        each.close()


def test_a_student_that_never_learns_is_not_waited_for(
    make_recipe: MakeRecipe, make_run: Callable[..., Run], tmp_path: Path
) -> None:
    (tmp_path / "model.pt").touch()
    frozen = f"{{name: c, model: mlp, weights: {tmp_path / 'model.pt'}, frozen: true, from_epoch: 2}}"
    students = f"students=[{{name: a, model: mlp}}, {{name: b, model: mlp}}, {frozen}]"
    more = ("data.val_fraction=0.2", "checkpoint.best=top1", "early_stopping={patience: 1}", "epochs=9")
    state = CoordinatorState.of(make_run(make_recipe(students, *more)), replace(SCHEDULE, epochs=9), CLASSES)
    figures = {"loss": 1.0, "top1": 0.5, "top5": 1.0}
    for epoch, names in ((0, "ab"), (1, "abc")):
        state.validation.add(epoch, 3 * epoch + 3, dict.fromkeys(names, figures), list(names))
        assert (state.stop_early() is None) is (epoch == 0)
    state.close()


def test_the_stored_keys_are_those_of_version_0_1_0(run: Run) -> None:
    state = trained(run)
    save_checkpoint(run, state, 3, parts_of(run, 3, "a", "b"))
    assert state.saved is not None
    stored = read_part(run.folder, state.saved, COORDINATOR)
    assert set(stored) == {"coordinator", "recorder", "results", "staleness"}
    assert set(stored["coordinator"]) == {"names", "weights", "walks", "whole"}
    assert set(stored["staleness"]) == {"sums", "histogram"}
    bank = read_part(run.folder, state.saved, "_bank-00000")
    assert set(bank) == {"student", "ids", "steps", "logits"}
    state.close()


def test_the_part_of_an_absent_student_is_copied(run: Run) -> None:
    state = CoordinatorState.of(run, SCHEDULE, CLASSES)
    for step, names in ((3, ["a", "b"]), (4, ["a"]), (5, ["a"]), (6, ["a", "b"])):
        given = parts_of(run, step, *names)
        save_checkpoint(run, state, step, given)
        assert set(given) == set(names), "the caller's parts are not changed"
        assert state.saved is not None
        assert state.saved.parts["a"].step is None
        assert state.saved.parts["b"].step == (3 if len(names) == 1 else None)
        expected = "b 3" if len(names) == 1 else f"b {step}"
        assert read_part(run.folder, state.saved, "b") == {"of": expected}
    state.close()


def test_a_student_that_never_had_a_part_has_none(run: Run) -> None:
    state = CoordinatorState.of(run, SCHEDULE, CLASSES)
    for step in (3, 4):
        save_checkpoint(run, state, step, parts_of(run, step, "a"))
        assert state.saved is not None
        assert set(state.saved.parts) == {"a", COORDINATOR}
    state.close()


def test_the_first_replica_reports_the_part() -> None:
    workers, messages = [Worker(0, 0, "a"), Worker(1, 0, "b/0"), Worker(1, 1, "b/1")], []
    for rank in range(3):
        message = Message(MessageLayout(1, CLASSES))
        message.header["digest"], message.header["bytes"] = [rank] * 32, 100 + rank
        messages.append(message)
    found = student_parts(["a", "b"], workers, messages)
    assert found == {"a": Part("00" * 32, 100), "b": Part("01" * 32, 101)}

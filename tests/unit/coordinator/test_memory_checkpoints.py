"""Checkpoints in memory: when they are taken, which one counts, and the return of the coordinator's state."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from cohorts import MakeRecipe

from kdcl_dist.config.rounds import Kind, Round, RunSchedule
from kdcl_dist.config.student import Worker
from kdcl_dist.coordinator.checkpointing import CoordinatorState, save_checkpoint
from kdcl_dist.coordinator.memory_checkpoints import MemoryCheckpoints
from kdcl_dist.errors import (
    ExchangeBroke,
    KdclError,
    NonFiniteLogits,
    SilentCorruption,
    StudentFailed,
    StudentLost,
)
from kdcl_dist.exchange.message import Flag, StepMetrics
from kdcl_dist.membership.shelf import Shelf
from kdcl_dist.run.checkpoint import Manifest, latest, part_of, write_part
from kdcl_dist.run.run import Run

SCHEDULE = RunSchedule(2, 7, 1, 1, 1, 40)
CLASSES = 4
EVERY = "checkpoint.in_memory_every_steps=3"
FAILURES = "failure.max_failures=1"


def at(step: int, part: int = 0) -> Round:
    return Round(Kind.TRAIN, step // 7, step, part)


@pytest.fixture
def state(make_recipe: MakeRecipe, make_run: Callable[..., Run]) -> Iterator[CoordinatorState]:
    run = make_run(
        make_recipe(
            "distillation.method=general",
            "distillation.window=2",
            "data.holdout_per_class=1",
            EVERY,
            FAILURES,
        )
    )
    state = CoordinatorState.of(run, SCHEDULE, CLASSES)
    yield state
    state.close()


def send(shelf: Shelf, checkpoint: str, *names: str) -> None:
    """States arrive."""
    for name in names:
        data = f"{name} {checkpoint}".encode()
        stream: Any = SimpleNamespace(read=lambda size, data=data: data, write=lambda answer: None)
        shelf.put(stream, checkpoint, name, part_of(data).sha256, len(data))


def memory_of(state: CoordinatorState) -> MemoryCheckpoints:
    return MemoryCheckpoints(state.aggregator.recipe, Shelf())


def take(memory: MemoryCheckpoints, state: CoordinatorState, step: int, *names: str) -> None:
    """Take a checkpoint, of which the states of some students arrive."""
    assert memory.ask(0, at(step - 1), state) is Flag.KEEP
    memory.keep(at(step), state)
    send(memory.shelf, f"0/{step}", *names)


def test_it_is_asked_for_between_the_steps_of_an_epoch(state: CoordinatorState) -> None:
    state.schedule = replace(SCHEDULE, steps_per_epoch=6)
    asked = []
    for step in range(12):
        memory = memory_of(state)
        asked += [step + 1] if memory.ask(0, Round(Kind.TRAIN, step // 6, step), state) else []
    assert asked == [3, 9], "at the end of an epoch are tests, and a checkpoint on the storage"


def test_parts_of_a_step_have_none_between_them(state: CoordinatorState) -> None:
    state.schedule = replace(SCHEDULE, accumulate=2)
    memory = memory_of(state)
    assert [memory.ask(0, at(2, part), state) for part in (0, 1)] == [Flag.NONE, Flag.KEEP]
    memory.keep(at(3, 1), state)
    send(memory.shelf, "0/3", "a", "b")
    assert memory.is_on_its_way(), "the second part of a step is too late for the coordinator's state"
    memory.keep(at(3), state)
    assert not memory.is_on_its_way()


def test_none_is_taken_while_a_student_is_absent_or_no_failure_is_allowed(state: CoordinatorState) -> None:
    state.aggregator.present = [0]
    assert memory_of(state).ask(0, at(2), state) is Flag.NONE
    state.aggregator.present = [0, 1]
    assert memory_of(state).ask(0, at(2), state) is Flag.KEEP
    for section, change in (("failure", {"policy": "stop"}), ("checkpoint", {"in_memory_every_steps": 0})):
        changed = getattr(state.aggregator.recipe, section).model_copy(update=change)
        recipe = state.aggregator.recipe.model_copy(update={section: changed})
        assert MemoryCheckpoints(recipe, Shelf()).ask(0, at(2), state) is Flag.NONE


def test_it_counts_once_all_states_are_there(state: CoordinatorState) -> None:
    memory = memory_of(state)
    assert memory.newest() is None
    assert memory.consequence() == "all go back to the latest checkpoint"
    take(memory, state, 3, "a")
    assert memory.is_on_its_way()
    assert memory.ask(0, at(5), state) is Flag.NONE, "the next one is not asked for meanwhile"
    send(memory.shelf, "0/3", "b")
    take(memory, state, 6, "a")
    newest = memory.newest()
    assert newest is not None
    assert (newest.step, newest.generation, newest.epoch, newest.key) == (3, 0, 0, "0/3")
    assert newest.parts == {name: part_of(f"{name} 0/3".encode()) for name in ("a", "b")}
    assert memory.consequence() == "all go back to step 3, kept in memory"
    send(memory.shelf, "0/6", "b")
    assert memory.newest() == newest, "what comes after a failure does not count"
    assert memory.shelf.parts("0/6") == {}


def test_the_next_generation_does_not_mix_its_states_with_those_before(state: CoordinatorState) -> None:
    memory = memory_of(state)
    take(memory, state, 3, "a")
    assert memory.newest() is None
    assert memory.ask(1, at(2), state) is Flag.KEEP
    memory.keep(at(3), state)
    send(memory.shelf, "0/3", "b")
    send(memory.shelf, "1/3", "b")
    assert memory.is_on_its_way()


def test_a_checkpoint_on_the_storage_has_the_state_in_memory_of_who_is_away(
    state: CoordinatorState, make_run: Callable[..., Run]
) -> None:
    """But for one that arrived with other bits."""
    run, memory = make_run(state.aggregator.recipe), memory_of(state)
    state.saved = Manifest(1, {name: write_part(run.folder, 1, name, {"of": 1}) for name in ("a", "b")})
    take(memory, state, 3, "a", "b")
    assert memory.newest() is not None
    parts = {"a": write_part(run.folder, 7, "a", {"of": 7})}
    save_checkpoint(run, state, 7, dict(parts), memory.state_of)
    assert state.saved.step_of("b") == 3
    assert run.folder.read("checkpoints/step-00000007/b.pt") == b"b 0/3"
    assert latest(run.folder, print) == state.saved
    memory.shelf._states["0/3"]["b"] = part_of(b"b 0/3"), b"x 0/3"
    save_checkpoint(run, state, 7, dict(parts), memory.state_of)
    assert run.folder.read("checkpoints/step-00000007/b.pt") == b"b 0/3", "a copy of the one before"
    memory.clear()
    assert memory.state_of("b") is None


@pytest.mark.parametrize(
    "kind", [StudentLost, StudentFailed, ExchangeBroke, NonFiniteLogits, SilentCorruption]
)
def test_after_bad_numbers_it_counts_no_more(kind: type[KdclError], state: CoordinatorState) -> None:
    memory = memory_of(state)
    take(memory, state, 3, "a", "b")
    memory.judge(kind("x", student="b", step=4))
    assert (memory.newest() is None) is (kind in (NonFiniteLogits, SilentCorruption))


def test_a_newer_checkpoint_on_the_storage_takes_its_place(state: CoordinatorState) -> None:
    memory = memory_of(state)
    take(memory, state, 3, "a", "b")
    assert memory.newest() is not None
    memory.clear()
    assert memory.newest() is memory.own_state() is None
    assert memory.shelf.parts("0/3") == {}


def test_the_coordinators_state_comes_back_as_often_as_it_is_needed(
    state: CoordinatorState, make_recipe: MakeRecipe, make_run: Callable[..., Run]
) -> None:
    """Also if training, and the training after a return, change it."""
    aggregator = state.aggregator
    aggregator.weights_S = torch.tensor([0.25, 0.75], dtype=torch.float64)
    aggregator.method_state = {"seen": [1]}
    aggregator.bank.put(1, torch.tensor([3, 8]), torch.eye(4)[:2], 2)  # type: ignore[union-attr]
    aggregator.window_check.sums_S += torch.tensor([5, -7])  # type: ignore[union-attr]
    state.metrics.step_metrics([Worker(0, 0, "a")], [StepMetrics(step=2, loss=0.5, task_loss=0.5)])
    state.metrics.staleness.sums_S3 += 9
    state.validation.tests.append({"epoch": 0, "step": 2, "results": {}, "saved": ["a"]})
    memory, ids = memory_of(state), torch.arange(40)
    expected = state.metrics.running()
    take(memory, state, 3, "a", "b")
    run = replace(make_run(aggregator.recipe), start=memory.newest())
    change(state)
    for _ in range(2):
        again = CoordinatorState.of(run, SCHEDULE, CLASSES, kept=memory.own_state())
        assert (again.position, again.saved) == (SCHEDULE.first(3), None)
        assert again.aggregator.weights_S.tolist() == [0.25, 0.75]
        assert again.aggregator.method_state == {"seen": [1]}
        assert again.aggregator.window_check.sums_S.tolist() == [5, -7]  # type: ignore[union-attr]
        assert again.metrics.running() == expected != {}
        assert set(again.metrics.staleness.sums_S3.flatten().tolist()) == {9}
        assert again.validation.tests == [{"epoch": 0, "step": 2, "results": {}, "saved": ["a"]}]
        ages = again.aggregator.bank.latest(ids, 3)[1]  # type: ignore[union-attr]
        assert (ages >= 0).nonzero().tolist() == [[1, 3], [1, 8]]
        change(again)
        again.close()


def change(state: CoordinatorState) -> None:
    """What later steps do."""
    aggregator = state.aggregator
    aggregator.weights_S += 1
    aggregator.method_state["seen"].append(2)
    aggregator.bank.put(0, torch.tensor([1, 3]), torch.eye(4)[:2], 3)  # type: ignore[union-attr]
    aggregator.window_check.sums_S += 1  # type: ignore[union-attr]
    state.metrics.step_metrics([Worker(0, 0, "a")], [StepMetrics(step=3, loss=0.7, task_loss=0.5)])
    state.metrics.staleness.sums_S3 += 1
    state.validation.lose(["a"], 2)

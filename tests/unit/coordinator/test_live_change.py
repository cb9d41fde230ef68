"""Requests to change the cohort of a run that trains: when they are met, and what follows then."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from cohorts import MakeRecipe

from kdcl_dist.config.recipe import Recipe
from kdcl_dist.config.rounds import Kind, Round, RunSchedule
from kdcl_dist.config.student import Worker
from kdcl_dist.coordinator import live_change
from kdcl_dist.coordinator.checkpointing import CoordinatorState, save_checkpoint
from kdcl_dist.coordinator.live_change import LiveChange
from kdcl_dist.errors import StorageError
from kdcl_dist.exchange.message import StepMetrics
from kdcl_dist.membership.rendezvous import WorkerInfo
from kdcl_dist.run.checkpoint import write_part
from kdcl_dist.run.cohort_requests import apply, as_begun, ask, names_of
from kdcl_dist.run.events import Event, Note, Warned
from kdcl_dist.run.run import Run, load_run
from kdcl_dist.run.storage import Folder

C, D = ({"add": {"name": name, "model": "mlp"}} for name in "cd")


def worker(name: str, data: str = "f") -> WorkerInfo:
    return WorkerInfo(name, "127.0.0.1", 1, "cpu", 1, 4, {}, {"train": data}, {})


class Launched:
    """A launcher of which only the processes of newcomers matter."""

    def __init__(self) -> None:
        self.told = list[tuple[Recipe, Recipe]]()
        self.waiting = set[str]()

    def admit(self, recipe: Recipe, wanted: Recipe) -> None:
        self.told.append((recipe, wanted))

    def wait(self, ranks: Mapping[str, int]) -> list[WorkerInfo]:
        wanted = {worker.name: rank for rank, worker in enumerate(self.told[-1][1].workers)}
        assert ranks.items() <= wanted.items()
        return [worker(name) for name in ranks] if {*ranks} <= self.waiting else []


class Asked:
    """A run of four epochs, and what is asked of it."""

    def __init__(self, run: Run, launched: Launched) -> None:
        self.run, self.events, self.launched = run, list[Event](), launched
        self.change = LiveChange(run, launched, launched.wait, self.events.append)  # type: ignore[arg-type]

    def ask(self, *requests: dict[str, Any]) -> None:
        for request in requests:
            ask(self.run.folder, request)  # type: ignore[arg-type]
        self.change.look()

    @property
    def lines(self) -> list[str]:
        return [event.text for event in self.events if isinstance(event, Note | Warned)]


def eventually(happened: Callable[[], object]) -> None:
    deadline = time.monotonic() + 120
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def refuse(*_: object) -> Any:
    raise StorageError("the disk is full")


@pytest.fixture
def run(make_recipe: MakeRecipe, make_run: Callable[..., Run]) -> Run:
    return make_run(make_recipe("epochs=4"))


def test_a_coordinator_that_replaces_another_looks_once_it_knows_its_epoch(
    make_recipe: MakeRecipe, make_run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kdcl_dist.coordinator.live_change.LOOK_S", 0.01)
    asked = Asked(make_run(make_recipe("epochs=4", "students.b.from_epoch=3")), Launched())
    ask(asked.run.folder, {"remove": "b"})
    with asked.change:
        time.sleep(0.1)
        assert not asked.lines, "b has not joined yet in the run's first epoch, which has long passed"
        asked.change.is_due(2)
        eventually(lambda: asked.change.pending)
    assert asked.lines == ["not met before the run's end: b leaves after epoch 3"]


def test_who_waits_joins_and_who_asked_later_joins_later(run: Run) -> None:
    asked = Asked(run, launched := Launched())
    asked.ask(C, D, {"remove": "b"})
    assert [(recipe.names, wanted.names) for recipe, wanted in launched.told] == [([*"ab"], [*"abcd"])]
    newcomer = launched.told[0][1].students[2]
    assert newcomer.takes_part(run.epoch), "it keeps its network while it waits"
    launched.waiting = {"d"}
    assert [*asked.change.ready().values()] == [{"remove": "b"}], "the numbers of d depend on c's place"
    launched.waiting = {"c"}
    assert asked.change.is_due(1)
    recipe = asked.change.meet(1)
    assert recipe is not None
    assert [(each.name, each.from_epoch, each.until_epoch) for each in recipe.students] == [
        ("a", 1, None),
        ("b", 1, 2),
        ("c", 3, None),
    ]
    assert asked.lines == ["c joins after epoch 2", "b leaves after epoch 2"]
    assert load_run(run.folder.uri)[0] == recipe == as_begun(run).recipe
    assert as_begun(replace(run, id="resumed")).recipe == run.recipe, "each start states its recipe"
    assert [recipe.names for recipe in launched.told[-1]] == [[*"abc"], [*"abcd"]]
    assert len(names_of(run.folder)) == 1
    asked.change.look()
    assert not asked.change.is_due(2)
    assert asked.change.meet(2) is None
    launched.waiting = {"d"}
    asked.change.meet(2)
    assert asked.lines[2:] == ["d joins after epoch 3"]
    assert not names_of(run.folder)


def test_all_replicas_must_wait(run: Run) -> None:
    asked = Asked(run, launched := Launched())
    asked.ask({"add": {"name": "c", "model": "mlp", "replicas": 2}})
    launched.waiting = {"c/0"}
    assert not asked.change.is_due(0)
    launched.waiting = {"c/0", "c/1"}
    assert asked.change.is_due(0)


def test_who_disagrees_and_comes_between_two_looks_does_not_end_the_run(run: Run) -> None:
    asked = Asked(run, Launched())
    asked.ask(C)
    asked.change.member = worker("a", "other data")
    looks = iter([(), ("c",), ("c",)])
    asked.change.waiting = lambda ranks: [worker(name) for name in next(looks)]
    assert not asked.change.is_due(0)
    assert not asked.lines
    assert not asked.change.is_due(0)
    (line,) = asked.lines
    assert "c reads other data" in line


def test_what_does_not_fit_is_refused_once(run: Run) -> None:
    asked = Asked(run, launched := Launched())
    asked.ask({"add": {"name": "a", "model": "mlp"}}, {"remove": "x"}, {})
    run.folder.write("cohort/9.json", b"{")
    asked.change.look()
    assert len(asked.lines) == 4
    assert all(line.startswith("a request to change the cohort is refused: ") for line in asked.lines)
    assert launched.told == [(run.recipe, run.recipe)]
    assert not names_of(run.folder)
    assert not asked.change.is_due(0)


def test_a_file_that_stays_is_refused_or_met_once(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """It cannot be deleted, such as a folder, or one in a folder of another user."""
    Path(run.folder.uri, "cohort/0.json").mkdir(parents=True)
    monkeypatch.setattr(Folder, "delete_file", refuse)
    asked = Asked(run, Launched())
    asked.ask({"remove": "b"})
    asked.change.look()
    assert asked.change.meet(1) is not None
    asked.change.look()
    assert [line.partition(":")[0] for line in asked.lines] == [
        "a request to change the cohort is refused",
        "b leaves after epoch 2",
    ]
    assert not asked.change.is_due(0), "after a return to an earlier epoch, too"


def test_a_file_that_cannot_be_read_holds_up_no_other(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    run.folder.write("cohort/0.json", b"")
    read = live_change.read
    monkeypatch.setattr(
        live_change, "read", lambda folder, name: (refuse if name == "0.json" else read)(folder, name)
    )
    asked = Asked(run, launched := Launched())
    asked.ask(C)
    asked.change.look()
    assert launched.told[-1][1].names == [*"abc"]
    assert asked.lines == ["requests to change the cohort: the disk is full; this is tried again"]


def test_who_reads_other_data_is_refused_and_ends_no_run(run: Run) -> None:
    """Its files were written anew since the others opened them."""
    asked = Asked(run, launched := Launched())
    asked.ask(C, D)
    launched.waiting = {"c", "d"}
    asked.change.member = worker("a", "before")
    assert not asked.change.is_due(0)
    asked.change.look()
    assert not asked.change.is_due(0)
    assert [line.partition(" on ")[0] for line in asked.lines] == [
        f"a request to change the cohort is refused: {name} reads other data than 'a'" for name in "cd"
    ]
    assert not names_of(run.folder)


def test_no_request_is_met_in_the_place_of_one_that_is_refused(run: Run) -> None:
    asked = Asked(run, launched := Launched())
    asked.ask(C, D)
    launched.waiting = {"c", "d"}
    asked.change.asked = {
        name: {"add": {**request["add"], "lr": 1}} if request == C else request
        for name, request in asked.change.asked.items()
    }
    assert asked.change.meet(0) is None
    assert len(asked.lines) == 1
    asked.change.look()
    assert launched.told[-1][1].names == [*"abd"]


def test_who_is_not_ready_in_time_holds_up_nobody(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(live_change, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    limit_s = run.recipe.limits.startup_s
    asked = Asked(run, launched := Launched())
    asked.ask(C, D)
    launched.waiting = {"d"}
    assert not asked.change.is_due(0)
    clock[0] = limit_s
    assert not asked.change.is_due(0)
    assert asked.lines == []
    clock[0] = limit_s + 1
    assert not asked.change.is_due(0)
    assert asked.lines == [
        "a request to change the cohort is refused: c is not ready to join within "
        f"{limit_s:g} s (limits.startup_s): it hangs, or needs longer to start"
    ]
    assert asked.change.meet(0) is None, "d's process has another place than d would have now"
    launched.waiting = set()
    asked.change.look()
    clock[0] += limit_s + 1
    assert not asked.change.is_due(0), "d begins anew at another place, and has its time for that"
    launched.waiting = {"d"}
    assert asked.change.is_due(0)
    assert len(asked.lines) == 1


def test_nobody_joins_after_the_last_epoch(run: Run) -> None:
    asked = Asked(run, launched := Launched())
    launched.waiting = {"c"}
    asked.ask(C)
    assert asked.change.meet(3) is None
    assert not asked.change.is_due(3), "before the next look, too"
    assert "c.from_epoch: 5 is more than the run has" in asked.lines[0]
    assert not names_of(run.folder)


def test_a_request_that_is_gone_is_forgotten(run: Run) -> None:
    """As the launcher deletes it where a newcomer's process fails."""
    asked = Asked(run, launched := Launched())
    asked.ask(C, D)
    run.folder.delete_file(f"cohort/{names_of(run.folder)[0]}")
    asked.change.look()
    assert launched.told[-1][1].names == [*"abd"]


def test_a_storage_that_refuses_leaves_the_cohort_as_it_is(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_change, "begin", refuse)
    asked = Asked(run, Launched())
    asked.ask({"remove": "b"})
    assert asked.change.is_due(0)
    assert asked.change.meet(0) is None
    assert asked.lines == ["the cohort cannot change yet: the disk is full; this is tried again"]
    assert not asked.change.is_due(0), "not at once"
    assert len(names_of(run.folder)) == 1


def test_the_thread_looks_by_itself(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_change, "LOOK_S", 0.01)
    asked = Asked(run, launched := Launched())
    ask(run.folder, C)  # type: ignore[arg-type]
    with asked.change as change:
        change.is_due(0)
        eventually(lambda: launched.told)
    assert launched.told[0][1].names == [*"abc"]
    assert asked.lines == ["not met before the run's end: c joins after epoch 1"]


def test_the_thread_outlives_what_it_cannot_read(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_change, "LOOK_S", 0.01)
    run.folder.write("cohort", b"")
    asked = Asked(run, launched := Launched())
    with asked.change as change:
        change.is_due(0)
        eventually(lambda: asked.lines)
        run.folder.delete_file("cohort")
        ask(run.folder, C)  # type: ignore[arg-type]
        eventually(lambda: launched.told and len(launched.told[-1][1].names) == 3)
    assert "cohort is no folder; delete it; this is tried again" in asked.lines[0]
    assert asked.lines[1:] == ["not met before the run's end: c joins after epoch 1"]


@pytest.mark.parametrize("last", [1, 2])
def test_the_epoch_before_a_change_has_its_tests(
    last: int, make_recipe: MakeRecipe, make_run: Callable[..., Run]
) -> None:
    """Also where the group forms anew between an epoch's last step and its checkpoint, without tests."""
    run, schedule = make_run(make_recipe("epochs=4")), RunSchedule(4, 3, 0, 1, 1, 40, evaluate_epochs=4)
    state = CoordinatorState.of(run, schedule, 4)
    state.position = schedule.after(Round(Kind.TRAIN, 0, last))
    state.adopt(apply(run.recipe, {"remove": "b"}, state.next_change + 1))
    (changes,) = state.schedule.changes
    assert changes == last - 1
    kinds = [each.kind for each in state.schedule.rounds(state.position) if each.epoch == changes]
    assert kinds[-2:] == [Kind.EVALUATE, Kind.CHECKPOINT]
    state.close()


def test_the_state_is_that_of_a_run_that_resumes_with_the_recipe(
    make_recipe: MakeRecipe, make_run: Callable[..., Run]
) -> None:
    run = make_run(
        make_recipe("distillation={method: general, window: 2}", "data.holdout_per_class=1", "epochs=4")
    )
    schedule = RunSchedule(4, 3, 1, 1, 1, 40)
    state = CoordinatorState.of(run, schedule, 4)
    aggregator, metrics = state.aggregator, state.metrics
    assert aggregator.bank is not None
    assert aggregator.window_check is not None
    aggregator.weights_S = torch.tensor([0.25, 0.75], dtype=torch.float64)
    aggregator.window_check.sums_S += torch.tensor([5, -7])
    aggregator.bank.put(1, torch.tensor([3, 8]), torch.eye(4)[:2], 2)
    metrics.step_metrics([Worker(0, 0, "a")], [StepMetrics(step=2, loss=0.5, task_loss=0.5)])
    metrics.staleness.sums_S3 += 9
    parts = {name: write_part(run.folder, 3, name, {}) for name in "ab"}
    save_checkpoint(run, state, 3, parts)
    recipe = apply(
        apply(run.recipe, {"add": {"name": "c", "model": "mlp", "ema": {}}}, 2), {"remove": "b"}, 2
    )
    wanted = schedule.for_cohort((1,), averages=True)
    resumed = CoordinatorState.of(replace(run, recipe=recipe, start=state.saved), wanted, 4)
    state.adopt(recipe)
    assert state.schedule == wanted == state.metrics.schedule
    for one, other in ((state, resumed), (resumed, state)):
        assert one.aggregator.window_check is not None
        assert other.aggregator.window_check is not None
        assert one.aggregator.bank is not None
        assert other.aggregator.bank is not None
        assert one.aggregator.names == [*"abc"] == one.metrics.recipe.names
        assert torch.equal(one.aggregator.weights_S, other.aggregator.weights_S)
        assert torch.equal(one.aggregator.window_check.sums_S, other.aggregator.window_check.sums_S)
        found = zip(
            one.aggregator.bank.latest(torch.arange(40), 3),
            other.aggregator.bank.latest(torch.arange(40), 3),
            strict=True,
        )
        assert all(torch.equal(left, right) for left, right in found)
        assert torch.equal(one.metrics.staleness.vector(), other.metrics.staleness.vector())
        assert one.metrics.running() == other.metrics.running() != {}
    for each in (state, resumed):
        each.close()

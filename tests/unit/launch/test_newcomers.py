"""The processes of students that are to join: who has one, and what follows where one fails."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest
from cohorts import MakeRecipe

from kdcl_dist.config.recipe import Recipe
from kdcl_dist.errors import ModelError, RecipeError
from kdcl_dist.launch import newcomers
from kdcl_dist.launch.newcomers import LocalNewcomers
from kdcl_dist.launch.processes import Process
from kdcl_dist.run.cohort_requests import apply, ask, names_of
from kdcl_dist.run.events import Event, Warned
from kdcl_dist.run.run import Run


class Host:
    """Starts processes that are none, and notes which were ended."""

    def __init__(self, run: Run) -> None:
        self.started, self.ended = list[str](), list[str]()
        self.full = set[str]()
        self.events = list[Event]()
        self.newcomers = LocalNewcomers(run.folder, self.start, self.events.append)

    def start(self, name: str, wanted: Recipe) -> Process:
        if name in self.full:
            raise RecipeError(f"no GPU is free\nfor {name}")
        self.started.append(name)
        handle = SimpleNamespace(kill=lambda: self.ended.append(name), exitcode=1)
        return Process(name, handle, None)  # type: ignore[arg-type]


@pytest.fixture
def run(make_recipe: MakeRecipe, make_run: Callable[..., Run]) -> Run:
    return make_run(make_recipe("epochs=4"))


@pytest.fixture
def host(run: Run, monkeypatch: pytest.MonkeyPatch) -> Host:
    monkeypatch.setattr(newcomers, "finish", lambda process: None)
    return Host(run)


def with_students(run: Run, *names: str, **fields: object) -> Recipe:
    recipe = run.recipe
    for name in names:
        recipe = apply(recipe, {"add": {"name": name, "model": "mlp", **fields}}, 1)
    return recipe


def test_those_who_are_to_join_have_processes_and_others_none(run: Run, host: Host) -> None:
    both = with_students(run, "c", "d", replicas=2)
    host.newcomers.admit(run.recipe, both)
    host.newcomers.admit(run.recipe, both)
    assert host.started == ["c/0", "c/1", "d/0", "d/1"]
    one = with_students(run, "d", replicas=2)
    host.newcomers.admit(run.recipe, one)
    assert host.ended == ["c/0", "c/1", "d/0", "d/1"], "the place of d has changed, and so its numbers"
    assert host.started[4:] == ["d/0", "d/1"]
    taken = host.newcomers.take(one)
    assert [process.name for process in taken] == ["d/0", "d/1"]
    host.newcomers.admit(one, one)
    host.newcomers.close()
    assert len(host.ended) == 4


@pytest.mark.parametrize("why", ["no room", "it dies"])
def test_a_student_with_replicas_is_refused_once(run: Run, host: Host, why: str) -> None:
    if why == "no room":
        host.full = {"c/0", "c/1"}
    host.newcomers.admit(run.recipe, with_students(run, "c", "d", replicas=2))
    for name, process in host.newcomers.processes.items():
        process.ended = name.startswith("c")
    host.newcomers.refuse_failed()
    assert [*host.newcomers.processes] == ["d/0", "d/1"]
    assert len(host.events) == 1


@pytest.mark.parametrize("why", ["no room", "it fails", "it dies"])
def test_who_cannot_join_is_told_in_a_line(run: Run, host: Host, why: str) -> None:
    for name in "cd":
        ask(run.folder, {"add": {"name": name, "model": "mlp"}})
    if why == "no room":
        host.full = {"c"}
    host.newcomers.admit(run.recipe, with_students(run, "c", "d"))
    host.newcomers.refuse_failed()
    if why == "it fails":
        host.newcomers.processes["c"].error = ModelError("its head does not fit", student="c")
    if why == "it dies":
        host.newcomers.processes["c"].ended = True
    host.newcomers.refuse_failed()
    assert [*host.newcomers.processes] == ["d"]
    (event,) = host.events
    assert isinstance(event, Warned)
    assert event.text.startswith("c does not join: ")
    assert "\n" not in event.text
    assert len(names_of(run.folder)) == 1

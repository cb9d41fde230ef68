"""Workers that join a run on Ray: who has one, what it takes, what follows a failure; Ray does not run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from cohorts import MakeRecipe
from ray.exceptions import RayActorError

from kdcl_dist.config.recipe import Recipe
from kdcl_dist.errors import ModelError, StudentFailed
from kdcl_dist.launch.messages import CohortAsked
from kdcl_dist.launch.preflight.placement import Host, Need, need_beside
from kdcl_dist.launch.ray import newcomers
from kdcl_dist.launch.ray.newcomers import Joined
from kdcl_dist.run.cohort_requests import apply
from kdcl_dist.run.events import Event, Warned
from kdcl_dist.run.run import Run


class Actor:
    """A worker that does what a test says.

    Attributes:
        options: that Ray is given.
        placed: whether it has found its place.
        result: of its process, None at its end, where `done`; an error of Ray is raised.
        begun: how many processes were started.
        killed: whether it was ended.
    """

    def __init__(self, options: dict[str, Any]) -> None:
        self.options, self.placed, self.killed, self.begun = options, True, False, 0
        self.done, self.result = False, None
        self.train = SimpleNamespace(remote=self._begin)
        self.__ray_ready__ = SimpleNamespace(remote=lambda: lambda: self.placed)

    def _begin(self) -> Callable[[], bool]:
        self.begun, self.done = self.begun + 1, False
        return lambda: self.done

    def end(self, result: Any = None) -> None:
        self.done, self.result = True, result


class Cluster:
    """A cluster of one host, and the run's workers there that join."""

    def __init__(self, run: Run) -> None:
        self.run, self.actors, self.events = run, list[Actor](), list[Event]()
        self.head = SimpleNamespace(is_away=False, address="h:1")
        self.joined = Joined(run, [Need("a", 1), Need("b", 1)], self.head, self.events.append)  # type: ignore[arg-type]

    def remote(self, options: dict[str, Any]) -> Any:
        self.actors.append(Actor(options))
        return SimpleNamespace(remote=lambda *arguments: self.actors[-1])

    def get(self, result: Callable[[], bool], timeout: float) -> Any:
        (actor,) = (each for each in self.actors if each.done)
        if isinstance(actor.result, Exception):
            raise actor.result
        return actor.result

    def ask(self, recipe: Recipe, wanted: Recipe) -> None:
        self.joined.admit(CohortAsked(recipe, wanted))
        self.joined.care()

    @property
    def lines(self) -> list[str]:
        return [event.text for event in self.events if isinstance(event, Warned)]


@pytest.fixture
def cluster(
    make_recipe: MakeRecipe, make_run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Cluster]:
    made = Cluster(make_run(make_recipe("epochs=4", "failure.max_failures=2")))
    monkeypatch.setattr(newcomers, "hosts", lambda: [Host("h", 4, 1)])
    monkeypatch.setattr(newcomers, "may_grow", lambda: False)
    monkeypatch.setattr(
        newcomers, "NewcomerActor", SimpleNamespace(options=lambda **options: made.remote(options))
    )
    ray = SimpleNamespace(
        wait=lambda answers, timeout: ([each for each in answers if each()], []),
        get=made.get,
        kill=lambda actor: setattr(actor, "killed", True),
    )
    monkeypatch.setattr(newcomers, "ray", ray)
    yield made
    made.joined.close()


def with_student(run: Run, name: str = "c", **fields: object) -> Recipe:
    return apply(run.recipe, {"add": {"name": name, "model": "mlp", **fields}}, 1)


def test_a_newcomer_takes_what_its_student_asks_for(cluster: Cluster) -> None:
    cluster.ask(
        cluster.run.recipe, with_student(cluster.run, replicas=2, resources={"cpu": 2, "gpu": "auto"})
    )
    assert [(each.options["num_cpus"], each.options["num_gpus"]) for each in cluster.actors] == [
        (2, 1),
        (2, 0),
    ], "the first takes the one GPU"
    assert not cluster.joined.works, "who waits is not waited for"


def test_on_a_cluster_of_the_runs_own_it_shares_the_cores(cluster: Cluster) -> None:
    cluster.joined.shares_cores = True
    cluster.ask(cluster.run.recipe, with_student(cluster.run, resources={"cpu": 5, "gpu": "auto"}))
    assert [(each.options["num_cpus"], each.options["num_gpus"]) for each in cluster.actors] == [(0, 1)]


def test_the_largest_share_of_a_gpu_that_is_left() -> None:
    (student,) = Recipe.model_validate(
        {"data": {"train": "x", "test": "x"}, "students": [{"name": "c", "model": "mlp"}]}
    ).students
    taken = [Need("a", 1, 0.6), Need("b", 1)]
    assert need_beside(student, taken, [Host("h", 9, 1)]) == Need("c", 1, 0.3333)
    assert need_beside(student, taken, [Host("h", 9, 2)]) == Need("c", 1, 1.0)
    assert need_beside(student, [Need("a", 1, 1.0)], [Host("h", 9, 1)]) == Need("c", 1)


@pytest.mark.parametrize("why", ["it fails", "its worker dies"])
def test_who_fails_before_it_has_joined_is_refused(why: str, cluster: Cluster) -> None:
    wanted = with_student(cluster.run)
    cluster.ask(cluster.run.recipe, wanted)
    (actor,) = cluster.actors
    actor.end(ModelError("no such file", student="c").to_dict() if why == "it fails" else RayActorError())
    cluster.joined.care()
    assert actor.killed
    assert actor.begun == 1
    (line,) = cluster.lines
    assert line.startswith("c does not join: ")
    assert "\n" not in line


@pytest.mark.parametrize("why", ["it dies", "its worker dies"])
def test_who_has_joined_is_replaced_as_often_as_the_recipe_allows(why: str, cluster: Cluster) -> None:
    wanted = with_student(cluster.run)
    cluster.ask(cluster.run.recipe, wanted)
    (actor,) = cluster.actors
    cluster.ask(wanted, wanted)
    for begun in (2, 3, 3):
        assert cluster.joined.works
        assert not cluster.joined.failures
        actor.end(StudentFailed("lost", student="c").to_dict() if why == "it dies" else RayActorError())
        cluster.joined.care()
        assert actor.begun == begun
    assert not cluster.joined.works
    assert len(cluster.joined.failures) == 1
    assert not cluster.lines


def test_one_that_failed_as_it_was_taken_into_the_run_is_replaced(cluster: Cluster) -> None:
    wanted = with_student(cluster.run)
    cluster.ask(cluster.run.recipe, wanted)
    cluster.actors[0].end(RayActorError())
    cluster.ask(wanted, wanted)
    assert cluster.actors[0].begun == 2
    assert not cluster.lines


def test_a_failure_that_would_repeat_is_the_runs(cluster: Cluster) -> None:
    wanted = with_student(cluster.run)
    cluster.ask(cluster.run.recipe, wanted)
    cluster.ask(wanted, wanted)
    cluster.actors[0].end(ModelError("no such file", student="c").to_dict())
    cluster.joined.care()
    assert [type(error) for error in cluster.joined.failures] == [ModelError]


def test_who_leaves_gives_its_place_back(cluster: Cluster) -> None:
    wanted = with_student(cluster.run)
    cluster.ask(cluster.run.recipe, wanted)
    cluster.ask(wanted, wanted)
    cluster.actors[0].end()
    cluster.joined.care()
    assert cluster.actors[0].killed
    assert not cluster.joined.members


def test_who_finds_no_place_in_time_is_refused(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(newcomers, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    cluster.ask(cluster.run.recipe, with_student(cluster.run, resources={"cpu": 3}))
    (actor,) = cluster.actors
    actor.placed = False
    clock[0] = 100.0
    cluster.joined.care()
    assert not cluster.lines
    clock[0] = 100.1
    cluster.joined.care()
    assert cluster.lines == [
        "c does not join: no place on the cluster for CPU 3 within 100 s (half of limits.startup_s)"
    ]
    assert actor.killed


@pytest.mark.parametrize(("grows", "refused"), [(False, True), (True, False)])
def test_who_could_never_have_a_place_is_refused_at_once(
    grows: bool, refused: bool, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(newcomers, "may_grow", lambda: grows)
    cluster.ask(cluster.run.recipe, with_student(cluster.run, resources={"cpu": 5}))
    assert len(cluster.actors) == (not refused)
    assert len(cluster.lines) == refused
    assert not refused or "no host offers CPU 5" in cluster.lines[0]


def test_while_the_head_is_away_nobody_joins(cluster: Cluster) -> None:
    cluster.head.is_away = True
    cluster.ask(cluster.run.recipe, with_student(cluster.run))
    assert cluster.lines == ["c does not join: the head of the Ray cluster, h:1, does not answer"]
    assert not cluster.actors


def test_one_that_waits_is_ended_with_the_run(cluster: Cluster) -> None:
    cluster.ask(cluster.run.recipe, with_student(cluster.run))
    cluster.joined.close()
    assert cluster.actors[0].killed

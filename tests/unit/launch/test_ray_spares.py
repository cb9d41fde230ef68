"""Which worker of Ray trains which student, and when a spare takes over; Ray does not run."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from cohorts import MakeRecipe
from ray.exceptions import ActorUnavailableError, GetTimeoutError, RayActorError

from kdcl_dist.errors import CoordinatorLost
from kdcl_dist.launch.ray import spares
from kdcl_dist.launch.ray.spares import Assigned, Places, await_student, students_first

#: The indices in the cohort of students "a" and "b".
A, B = 0, 1


class Cohort:
    """The places of a cohort, and what was told of it.

    Attributes:
        lines: told.
        actors: the latest actor of each place that a test has started.
        assignments: of each kind, as its workers know it.
    """

    def __init__(self, recipe: Any) -> None:
        self.lines, self.actors = list[str](), dict[tuple[int, int], object]()
        self.places = Places(recipe, self.lines.append)
        self.assignments: dict[int, list[int | None]] = {0: [B, None, A]}

    def begin(self, kind: int, assignment: list[int | None], *, anew: bool) -> None:
        """The workers of a kind are there, which Ray Train tells them and the coordinator's actor."""
        self.assignments[kind] = assignment
        self.places.begin(kind, assignment, anew=anew)

    def start(self, *ranks: int, kind: int = 0, accelerator: str | None = None) -> None:
        """Workers of Ray report that they are there."""
        for rank in ranks:
            self.actors[kind, rank] = object()
            self.places.report((kind, rank), self.actors[kind, rank], accelerator, self.assignments[kind])

    def kill(self, *ranks: int, kind: int = 0) -> None:
        """Workers die, which is noticed."""
        self.places.lose({(kind, rank): self.actors[kind, rank] for rank in ranks})

    def who(self, *ranks: int, kind: int = 0) -> list[int | None]:
        """Whom the workers of some ranks train."""
        return [self.places.student_of((kind, rank), 0).index for rank in ranks]


@pytest.fixture
def cohort(make_recipe: MakeRecipe) -> Cohort:
    """Two students, and one spare at rank 1."""
    cohort = Cohort(make_recipe())
    cohort.begin(0, [B, None, A], anew=True)
    cohort.start(0, 1, 2)
    return cohort


def test_a_spare_takes_over_and_the_next_worker_of_the_place_is_the_spare(cohort: Cohort) -> None:
    assert cohort.who(0, 1, 2) == [B, None, A]
    cohort.kill(2)
    assert cohort.who(0, 1, 2) == [B, A, None]
    cohort.begin(0, [B, None, A], anew=False)  # as Ray Train knows it
    cohort.start(2)
    assert cohort.who(0, 1, 2) == [B, A, None]
    cohort.kill(1)
    cohort.start(1)
    assert cohort.who(0, 1, 2) == [B, None, A]
    assert cohort.lines == ["a: its worker of Ray died; a spare takes over"] * 2
    assert cohort.places.student_of((0, 2), 0).took_over
    assert not cohort.places.student_of((0, 0), 0).took_over


def test_without_a_spare_the_next_worker_of_the_place_has_the_student(cohort: Cohort) -> None:
    cohort.kill(0)
    cohort.kill(2)
    assert cohort.who(0, 1, 2) == [None, B, A]
    cohort.start(2)
    assert cohort.who(0, 1, 2) == [None, B, A]


def test_a_student_without_a_worker_gets_the_first_spare_that_comes(cohort: Cohort) -> None:
    cohort.kill(0)
    cohort.kill(2)
    cohort.start(0)
    assert cohort.who(0, 1, 2) == [A, B, None]
    assert len(cohort.lines) == 2


def test_a_spare_that_has_died_takes_over_for_nobody(cohort: Cohort) -> None:
    cohort.kill(1, 2)
    assert cohort.who(0, 1, 2) == [B, None, A]
    cohort.start(2)
    cohort.kill(2)
    assert cohort.who(0, 1, 2) == [B, None, A]
    assert not cohort.lines


def test_the_death_of_a_worker_that_is_replaced_already_changes_nothing(cohort: Cohort) -> None:
    before = cohort.actors[0, 2]
    cohort.start(2)
    cohort.places.lose({(0, 2): before})
    assert cohort.who(0, 1, 2) == [B, None, A]


def test_a_spare_takes_over_where_it_has_what_the_student_asks_for(make_recipe: MakeRecipe) -> None:
    cohort = Cohort(make_recipe("students.b.accelerator=T4"))
    cohort.begin(0, [A, None], anew=True)
    cohort.begin(1, [B, None, None], anew=True)
    cohort.start(0, 1, accelerator="T4")
    cohort.start(1, kind=1, accelerator="A100")
    cohort.start(0, kind=1, accelerator="T4")
    cohort.kill(0, kind=1)
    assert cohort.who(0, 1, 2, kind=1) == [B, None, None], "neither another kind's nor one on an A100"
    assert cohort.who(0, 1) == [A, None]
    cohort.start(2, kind=1, accelerator="T4")
    assert cohort.who(0, 1, 2, kind=1) == [None, None, B]


def test_after_a_restart_of_the_actor_the_workers_say_who_is_who(
    cohort: Cohort, make_recipe: MakeRecipe
) -> None:
    """Rank 1 took over for rank 2, which Ray Train does not know, and whose next worker comes meanwhile."""
    restarted = Cohort(make_recipe())
    restarted.begin(0, [B, None, A], anew=False)
    restarted.start(2)
    assert restarted.who(2) == [None], "unknown as long as others may have the student"
    restarted.places.hold((0, 1), A, "actor 1")
    restarted.places.hold((0, 0), B, "actor 0")
    restarted.start(2)
    assert restarted.who(0, 1, 2) == [B, A, None]
    assert not restarted.lines


def test_after_a_restart_of_the_actor_nobody_is_forgotten(make_recipe: MakeRecipe) -> None:
    restarted = Cohort(make_recipe())
    restarted.begin(0, [B, None, A], anew=False)
    restarted.places.hold((0, 0), B, "actor 0")
    restarted.start(2)
    assert restarted.who(2) == [None]
    restarted.start(1)
    assert restarted.who(0, 1, 2) == [B, A, None]
    assert not restarted.lines
    assert not restarted.places.student_of((0, 1), 0).took_over, "it is not known whether it was a spare"


def test_an_actor_that_restarts_before_any_worker_has_asked_learns_of_the_students(
    make_recipe: MakeRecipe,
) -> None:
    """Ray Train tells a coordinator's actor only once that the workers are there."""
    restarted = Cohort(make_recipe())
    restarted.start(0, 1)
    assert restarted.who(0, 1) == [None, None]
    restarted.start(2)
    assert sorted(restarted.who(0, 1, 2), key=str) == [A, B, None]
    assert restarted.places.students == {A, B}


def test_a_spare_waits_until_it_is_needed_or_the_run_is_over(cohort: Cohort) -> None:
    found: list[Assigned] = []
    for act in (lambda: cohort.kill(0), cohort.places.end):
        waits = threading.Thread(target=lambda: found.append(cohort.places.student_of((0, 1), 240)))
        waits.start()
        act()
        waits.join(240)
        cohort.start(0)
        cohort.places.hold((0, 0), B, cohort.actors[0, 0])
    assert [(each.index, each.is_over) for each in found] == [(B, False), (None, True)]


class Actor:
    """A worker's actor: its answer to a ping is the actor itself."""

    def __init__(self) -> None:
        self.answer: Callable[[], None] | None = None
        self.pings = 0
        self.__ray_call__ = SimpleNamespace(remote=self.ping)

    def ping(self, function: object) -> Actor:
        self.pings += 1
        return self


@pytest.fixture
def _fake_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    def get(actor: Actor) -> None:
        assert actor.answer is not None
        actor.answer()

    def wait(actors: list[Actor], timeout: float) -> tuple[list[Actor], list[Any]]:
        return [actor for actor in actors if actor.answer is not None], []

    monkeypatch.setattr(spares, "ray", SimpleNamespace(get=get, wait=wait))


@pytest.mark.usefixtures("_fake_ray")
def test_a_worker_counts_as_dead_once_ray_says_so(cohort: Cohort) -> None:
    def unavailable() -> None:
        raise ActorUnavailableError("for a moment", b"0" * 16)

    def dead() -> None:
        raise RayActorError

    actor, pings = Actor(), dict[tuple[int, int], tuple[Any, Any]]()
    for rank in (0, 1):
        cohort.places.report((0, rank), Actor(), None, [B, None, A])
    cohort.places.report((0, 2), actor, None, [B, None, A])
    answers: list[Callable[[], None] | None] = [None, None, lambda: None, unavailable, dead]
    for answer in answers:
        assert cohort.who(0, 1, 2) == [B, None, A]
        actor.answer = answer
        cohort.places.look(pings)
    assert cohort.who(0, 1, 2) == [B, A, None]
    assert actor.pings == 4, "one after the other"


@pytest.fixture
def ask(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Assigned]:
    """Asks an actor that gives some answers in turn, the last one again and again."""

    def ask(*answers: Assigned | Exception, limit_s: float = 240) -> Assigned:
        left = list(answers)

        def get(ref: object, timeout: float) -> Assigned:
            answer = left.pop(0) if len(left) > 1 else left[0]
            if isinstance(answer, Exception):
                raise answer
            return answer

        context = SimpleNamespace(current_actor="own")
        ray = SimpleNamespace(get=get, get_runtime_context=lambda: context)
        monkeypatch.setattr(spares, "ray", ray)
        monkeypatch.setattr(spares, "POLL_S", 0.001)
        actor = SimpleNamespace(student_of=SimpleNamespace(remote=lambda *arguments: arguments))
        return await_student(actor, (0, 1), None, [B, None, A], limit_s)

    return ask


def test_a_spare_asks_until_it_has_a_student(ask: Callable[..., Assigned]) -> None:
    waits, found = Assigned(None, is_over=False), Assigned(B, is_over=False, took_over="now")
    assert ask(waits, RayActorError(), waits, GetTimeoutError(), found) == found
    over = Assigned(None, is_over=True)
    assert ask(waits, over) == over


def test_a_spare_waits_for_an_actor_that_is_gone_within_a_limit(ask: Callable[..., Assigned]) -> None:
    with pytest.raises(CoordinatorLost, match=r"limits\.startup_s"):
        ask(Assigned(None, is_over=False), RayActorError(), limit_s=0.05)


def test_spares_are_on_the_hosts_that_have_the_fewest_workers() -> None:
    assert students_first(["x", "y", "y", "z", "z"]) == [1, 2, 3, 4, 0]
    assert students_first(["x", "x", "y"]) == [0, 1, 2]
    assert students_first(["x", "y", "z"]) == [0, 1, 2]

"""On Ray too the death of a student that joins later costs no step of the others; Ray does not run."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from cohorts import MakeRecipe

from kdcl_dist.errors import StudentLost
from kdcl_dist.launch.ray import coordinator, worker
from kdcl_dist.run.events import Started
from kdcl_dist.run.run import Run

LOST = StudentLost("the process of c died", student="c").to_dict()


@pytest.fixture
def actor(make_run: Callable[..., Run], make_recipe: MakeRecipe) -> Any:
    """The coordinator's actor, as an object of this process, whose run trains until it is asked to stop."""
    kind = coordinator.CoordinatorActor.__ray_metadata__.modified_class  # type: ignore[attr-defined]
    actor, stop = kind.__new__(kind), threading.Event()
    actor.run, actor.placed, actor.lack, actor.pending_events = make_run(make_recipe()), set(), {}, []
    actor.places = SimpleNamespace(end=lambda: None)
    actor.over, actor.metrics = threading.Event(), SimpleNamespace(handle=lambda event: None)
    actor._await_workers = lambda: None
    supervise = lambda: not stop.wait(60)  # noqa: E731
    actor.coordinator = SimpleNamespace(stop=stop.set, is_asked=stop.is_set, supervise=supervise)
    return actor


def test_the_run_stops_for_who_joins_later_and_ends_with_its_failure(actor: Any) -> None:
    assert not actor.give_up("c", LOST), "nobody trains yet: the coordinator waits for it"
    actor._emit(Started(["a", "b", "c"], {"a": {}, "b": {}}, 4, 3, 0))
    assert not actor.give_up("a", LOST), "the others miss it"
    assert not actor.coordinator.is_asked()
    assert actor.give_up("c", LOST)
    assert actor.give_up("c", {"another": "failure"})
    actor._coordinate()
    assert actor.outcome == LOST


def test_a_run_that_is_stopped_or_at_its_end_has_no_failure(actor: Any) -> None:
    actor.coordinator.stop()
    actor._coordinate()
    assert actor.outcome is False
    actor.lack, actor.coordinator.supervise = LOST, lambda: True
    actor._coordinate()
    assert actor.outcome is True, "it was at its end before it could stop"


@pytest.mark.parametrize(("stops", "looks"), [(True, 3), (False, 1)])
def test_its_worker_waits_for_the_checkpoint_of_the_others(
    stops: bool, looks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "DECIDE_S", 0.0)
    supervisor, answers = worker.Supervisor.__new__(worker.Supervisor), [False, False, True]
    supervisor.name, supervisor.limit_s = "c", 60.0
    supervisor.actor = SimpleNamespace(
        give_up=SimpleNamespace(remote=lambda name, failure: stops),
        is_over=SimpleNamespace(remote=lambda wait_s: answers.pop(0)),
    )
    monkeypatch.setattr(supervisor, "_ask", lambda ref: ref)
    assert supervisor._ends(StudentLost("the process of c died")) is stops
    assert len(answers) == 3 - looks

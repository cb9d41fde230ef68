"""The coordinator's end of the link to a launcher that answers, answers late, or not at all."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection

import pytest
from cohorts import MakeRecipe

from kdcl_dist.launch import coordinator_link
from kdcl_dist.launch.coordinator_link import LinkToHosts
from kdcl_dist.launch.messages import CohortAsked, Noticed, Question, Reply, StopAsked


@pytest.fixture
def ends() -> Iterator[tuple[Connection, LinkToHosts]]:
    ours, theirs = multiprocessing.Pipe()
    link = LinkToHosts(theirs)
    yield ours, link
    link.close()
    ours.close()
    link._receiver.join(60)


def test_a_late_answer_is_not_taken_for_another(
    ends: tuple[Connection, LinkToHosts], monkeypatch: pytest.MonkeyPatch
) -> None:
    launcher, link = ends
    monkeypatch.setattr(coordinator_link, "ANSWER_S", 0.05)
    assert not link.is_gone("a", 7), "no answer is none"
    assert launcher.recv() == Question(0, "is_gone", ("a", 7))
    launcher.send(Reply(0, True))
    monkeypatch.setattr(coordinator_link, "ANSWER_S", 60.0)
    launcher.send(Reply(1, False))
    assert not link.has("a")
    launcher.send(Reply(2, True))
    assert link.has("a")


def test_the_launcher_is_told_who_is_to_join(
    ends: tuple[Connection, LinkToHosts], make_recipe: MakeRecipe
) -> None:
    launcher, link = ends
    link.admit(recipe := make_recipe(), wanted := make_recipe("students.b.name=c"))
    assert launcher.recv() == CohortAsked(recipe, wanted)


def test_requests_arrive_each_once(ends: tuple[Connection, LinkToHosts]) -> None:
    """Also one that is repeated before it is met, as a callback's."""
    launcher, link = ends
    for message in (Noticed("one"), Noticed("two"), Noticed("one"), StopAsked()):
        launcher.send(message)
    deadline = time.monotonic() + 60
    while not link.stop.is_set():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert [link.notice() for _ in range(3)] == ["one", "two", None]

"""The failures that a run has survived: recorded beside what follows, in their order."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import pytest
from cohorts import MakeRecipe

from kdcl_dist.coordinator import past_failures
from kdcl_dist.coordinator.past_failures import PastFailures
from kdcl_dist.errors import CoordinatorLost, KdclError, StorageError, StudentLost
from kdcl_dist.run.record import read_record, record_survival, update_record
from kdcl_dist.run.run import Run


@pytest.fixture
def run(make_recipe: MakeRecipe, make_run: Callable[..., Run]) -> Run:
    return make_run(make_recipe())


def test_a_slow_storage_delays_the_next_generation_only(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    is_back = threading.Event()

    def slow(run: Run, causes: Sequence[KdclError]) -> None:
        assert is_back.wait(60)
        record_survival(run, causes)

    monkeypatch.setattr(past_failures, "record_survival", slow)
    past = PastFailures(run)
    past.add(StudentLost("b died", student="b"))
    assert ([str(cause) for cause in past.causes], PastFailures(run).causes) == (["student 'b': b died"], [])
    is_back.set()
    past.add(CoordinatorLost("the coordinator died"))
    past.complete_last([CoordinatorLost("a saw it", step=7, phase="gather", host="h")])
    past.settle()
    assert list(map(str, PastFailures(run).causes)) == list(map(str, past.causes))
    assert (past.causes[1].step, past.causes[1].host) == (7, "h")


def test_a_storage_that_refuses_ends_nothing(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(run: Run, causes: Sequence[KdclError]) -> None:
        raise StorageError("no")

    monkeypatch.setattr(past_failures, "record_survival", refuse)
    past = PastFailures(run)
    past.add(StudentLost("b died", student="b"))
    past.settle()
    assert len(past.causes) == 1


def test_threads_that_write_the_record_keep_each_other_s_fields(run: Run) -> None:
    def write(number: int) -> None:
        for count in range(30):
            update_record(run.folder, **{f"absences{number}": count})

    threads = [threading.Thread(target=write, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [read_record(run.folder)[f"absences{number}"] for number in range(3)] == [29] * 3

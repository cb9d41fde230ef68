"""What run.json keeps of the start of a generation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from cohorts import MakeRecipe

from kdcl_dist.coordinator.roster import Roster
from kdcl_dist.coordinator.start_record import record_start
from kdcl_dist.membership.rendezvous import WorkerInfo
from kdcl_dist.run.record import read_record
from kdcl_dist.run.run import Run

FIRST = WorkerInfo("a", "h1", 1, "cpu", 10, 4, {}, {}, {})


def test_each_spare_that_takes_over_is_recorded_once(
    make_run: Callable[..., Run], make_recipe: MakeRecipe
) -> None:
    run = make_run(make_recipe())

    def start(*workers: WorkerInfo) -> object:
        record_start(run, Roster(run.recipe, []), workers, {}, 0, 3)
        return read_record(run.folder).get("spares")

    other = replace(FIRST, name="b", host="h2")
    assert start(FIRST, other) is None
    spare = replace(other, pid=2, host="h3", took_over="10:00")
    assert start(FIRST, spare) == [{"student": "b", "at": "10:00", "host": "h3"}]
    again = {"student": "b", "at": "11:00", "host": "h1"}
    for third in (replace(spare, pid=3), replace(spare, pid=4, host="h1", took_over="11:00"), FIRST):
        found = start(FIRST, third)
    assert found == [{"student": "b", "at": "10:00", "host": "h3"}, again]

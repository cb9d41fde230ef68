"""The time left of a table: by arm, by pace, by epochs; on a clock that the tests set."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cohorts import MakeRecipe
from experiments import make_table, write_table

from kdcl_dist.compare import trial
from kdcl_dist.compare.experiment import Job, jobs_of, load_table
from kdcl_dist.compare.forecast import Forecast, duration
from kdcl_dist.compare.runs import Outcome
from kdcl_dist.config.recipe import Recipe
from kdcl_dist.errors import StudentFailed
from kdcl_dist.trial import Trial


@pytest.fixture
def jobs(make_recipe: MakeRecipe, tmp_path: Path) -> list[Job]:
    """Arms of one and two epochs: plain-seed0, long-seed0, plain-seed1, long-seed1."""
    arms = [
        {"name": "plain", "recipe": "tiny.yaml"},
        {"name": "long", "recipe": "tiny.yaml", "set": ["epochs=2"]},
    ]
    path = write_table(make_table(make_recipe, tmp_path), arms=arms)
    return jobs_of(load_table(path), path.parent)


def test_nothing_is_said_before_it_is_known(jobs: list[Job]) -> None:
    forecast = Forecast(jobs, 1)
    assert forecast.left_s(0) is None
    forecast.begin(jobs[0], 0.0, 10, start_s=2)
    forecast.step(jobs[0], 0.04, 11)
    assert forecast.left_s(11) is None
    forecast.step(jobs[0], 0.25, 15)  # 5 s a quarter: 22 s a run of an epoch, with its start
    assert forecast.left_s(15) == pytest.approx(15 + 22 + 2 * 44)
    assert forecast.left_s(17) == pytest.approx(13 + 22 + 2 * 44)


def test_ended_runs_of_an_arm_count_more_than_a_pace(jobs: list[Job]) -> None:
    forecast = Forecast(jobs, 1)
    forecast.begin(jobs[0], 0.0, 0)
    forecast.step(jobs[0], 1.0, 20)
    forecast.end(Outcome(jobs[0], {}, seconds=30.0))  # its start and its tests take time too
    assert forecast.left_s(30) == pytest.approx(30 + 2 * 60)
    forecast.end(Outcome(jobs[1], {}, seconds=50.0))
    assert forecast.left_s(80) == pytest.approx(30 + 50)
    forecast.end(Outcome(jobs[2], error=StudentFailed("lost")))  # tells nothing of how long a run takes
    assert forecast.left_s(80) == pytest.approx(50)
    forecast.end(Outcome(jobs[3], {}, seconds=50.0))
    assert forecast.left_s(80) == 0


def test_earlier_runs_tell_before_any_begins(jobs: list[Job]) -> None:
    done = [Outcome(jobs[0], {}, seconds=10.0), Outcome(jobs[1], {})]  # the other's time is not known
    assert Forecast(jobs[2:], 1, done).left_s(0) == pytest.approx(10 + 20)


def test_runs_at_once_share_the_time_but_none_is_divided(jobs: list[Job]) -> None:
    done = [Outcome(jobs[0], {}, seconds=10.0)]
    assert Forecast(jobs[1:], 2, done).left_s(0) == pytest.approx((20 + 10 + 20) / 2)
    assert Forecast(jobs[1:], 8, done).left_s(0) == pytest.approx(20)


def test_a_resumed_run_has_the_pace_of_its_rest(jobs: list[Job]) -> None:
    forecast = Forecast(jobs[:1], 1)
    forecast.begin(jobs[0], 0.5, 0)
    forecast.step(jobs[0], 0.75, 5)
    assert forecast.left_s(5) == pytest.approx(5)
    forecast.begin(jobs[0], 0.5, 8)  # a failure took it back; its pace is measured anew
    assert forecast.left_s(8) is None


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.4, "0 s"),
        (59, "59 s"),
        (61, "1 min"),
        (3599, "1 h 0 min"),
        (7800, "2 h 10 min"),
        (274000, "3 d 4 h"),
    ],
)
def test_durations_in_words(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_a_dry_run_of_each_arm(jobs: list[Job], monkeypatch: pytest.MonkeyPatch) -> None:
    clock, tried = [0.0], []

    def try_run(recipe: Recipe, steps: int, **_: Any) -> Trial:
        clock[0] += 9.0
        tried.append(recipe.epochs)
        return Trial({}, [1.0, 0.5, 0.5], 100, recipe.epochs, 0, 0, 0, None)

    monkeypatch.setattr(trial, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    monkeypatch.setattr(trial, "try_run", try_run)
    found = list(trial.try_arms(jobs[1:], 3, launcher="local", storage="none"))
    assert tried == [2, 1]
    assert [(each.arm, each.runs, each.start_s) for each in found] == [("long", 2, 7.0), ("plain", 1, 7.0)]
    assert [each.run_s for each in found] == [7 + 2 * 50, 7 + 50]

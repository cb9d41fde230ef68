"""A run folder as data: means, results, arms and their intervals."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from reporting import Row, in_memory, make_recipe, rows, write_run
from scipy import stats

from kdcl_dist.report.arms import group
from kdcl_dist.report.page import page
from kdcl_dist.report.run_data import load
from kdcl_dist.run.metrics import read_metrics
from kdcl_dist.run.storage import Folder


def test_curves_are_the_means_of_pandas(tmp_path: Path) -> None:
    uri = write_run(tmp_path / "run", make_recipe())
    run, frame = load(uri), read_metrics(Folder(uri)).to_pandas()
    expected = frame.groupby(["split", "student", "name", "epoch"]).value.agg(["mean", "count"])
    assert sum(len(curve.epochs) for curve in run.curves.values()) == len(expected)
    for (split, student, name), curve in run.curves.items():
        rows = expected.loc[split, student, name]
        assert curve.epochs.tolist() == [epoch + 1 for epoch in rows.index]
        assert curve.means == pytest.approx(rows["mean"].to_numpy())
        assert curve.counts.tolist() == rows["count"].tolist()


def test_a_mean_weighs_epochs_by_their_rows() -> None:
    def uneven() -> Iterator[Row]:
        for step, value in enumerate([1.0, 1.0, 1.0, 5.0]):
            yield "big", step // 3, step, "train", {"loss": value}

    run = in_memory(make_recipe(), uneven())
    assert run.mean("train", "big", "loss") == 2.0
    assert run.mean("train", "big", "loss", after=1) == 5.0
    assert math.isnan(run.mean("train", "big", "loss", after=2))
    assert math.isnan(run.mean("train", "big", "lr"))


@pytest.mark.parametrize(("epochs", "before"), [(1, 0), (2, 1), (4, 3), (8, 6), (9, 6)])
def test_the_last_quarter_has_at_least_one_epoch(epochs: int, before: int) -> None:
    recipe = make_recipe(f"epochs={epochs}")
    assert in_memory(recipe).last_quarter == before
    assert in_memory(recipe, rows(recipe, analysis=False)).last_quarter == 0


def test_results_are_those_of_the_last_tested_epoch() -> None:
    recipe = make_recipe()

    def lost_student() -> Iterator[Row]:
        for student, epoch, step, split, values in rows(recipe):
            if not (student == "small" and epoch == 7 and split == "test"):
                yield student, epoch, step, split, values

    run = in_memory(recipe, lost_student())
    assert run.results()["small"] == {}
    assert run.results()["big"].keys() == {"loss", "top1", "top5"}
    assert run.curve("test", "small", "top1") is not None


def test_a_student_that_has_left_keeps_the_results_that_are_recorded(tmp_path: Path) -> None:
    recipe, last = make_recipe(), {"loss": 1.0, "top1": 0.5, "top5": 0.9}

    def until_it_left() -> Iterator[Row]:
        for student, epoch, step, split, values in rows(recipe):
            if not (student == "small" and epoch > 3):
                yield student, epoch, step, split, values

    run = load(write_run(tmp_path / "run", recipe, until_it_left(), results={"small": last, "big": last}))
    assert run.results()["small"] == last
    assert run.results()["big"] != last, "its own last test counts"


def test_the_last_test_may_be_before_the_last_epoch() -> None:
    recipe = make_recipe()

    def stopped() -> Iterator[Row]:
        for student, epoch, step, split, values in rows(recipe):
            if not (split == "test" and epoch > 3):
                yield student, epoch, step, split, values

    run = in_memory(recipe, stopped())
    assert (run.tested, run.epochs) == (4, 8)
    assert "Test results after epoch 4 of 8" in page([run])


def test_a_run_without_metrics_has_its_recorded_results(tmp_path: Path) -> None:
    recorded = {"big": {"loss": 1.0, "top1": 0.5, "top5": 0.9}}
    cause = {"error": "StudentFailed", "message": "lost"}
    run = load(write_run(tmp_path / "run", make_recipe(), iter(()), results=recorded, cause=cause))
    assert run.results() == recorded
    assert run.epochs == 0


def test_intervals_of_an_arm_equal_scipy() -> None:
    (arm,) = group([in_memory(make_recipe(f"seed={seed}")) for seed in range(5)])
    top1 = [run.results()["small"]["top1"] for run in arm.runs]
    found, count = arm.interval("small", "top1")
    low, high = stats.t.interval(0.95, 4, loc=np.mean(top1), scale=stats.sem(top1))
    assert (count, found[:3]) == (5, pytest.approx((np.mean(top1), low, high)))
    for epoch, mean, low, high in arm.curve("small", "top1"):
        values = [dict(run.curves["test", "small", "top1"].points())[epoch] for run in arm.runs]  # type: ignore[index]
        expected = stats.t.interval(0.95, 4, loc=np.mean(values), scale=stats.sem(values))
        assert (mean, low, high) == pytest.approx((np.mean(values), *expected))


def test_an_arm_without_results_has_no_interval() -> None:
    (arm,) = group([in_memory(make_recipe())])
    found, count = arm.interval("missing", "top1")
    assert (count, math.isnan(found.value)) == (0, True)
    assert arm.curve("missing", "top1") == []
    (epoch, mean, low, high), *_ = arm.curve("big", "top1")
    assert (epoch, math.isfinite(mean), math.isnan(low), math.isnan(high)) == (1.0, True, True, True)


def test_a_curve_has_the_epochs_of_all_runs() -> None:
    recipe = make_recipe("seed=1")
    (arm,) = group([in_memory(make_recipe()), in_memory(recipe, rows(recipe, epochs=3))])
    assert [epoch for epoch, *_ in arm.curve("big", "loss")] == [1.0, 2.0, 3.0]

"""`kdcl compare`: tables and their summaries."""

from __future__ import annotations

import importlib
import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cohorts import MakeRecipe
from experiments import compare, make_table, write_table
from rich.console import Console
from scipy import stats

from kdcl_dist.compare.experiment import Job, jobs_of, load_table, only_arms
from kdcl_dist.compare.runs import Outcome
from kdcl_dist.compare.summary import markdown, short_markdown, summarise
from kdcl_dist.errors import RecipeError
from kdcl_dist.run.storage import Folder


@pytest.fixture
def table(make_recipe: MakeRecipe, tmp_path: Path) -> Path:
    return make_table(make_recipe, tmp_path)


def test_figures_of_a_table(table: Path) -> None:
    wanted = load_table(table)
    jobs = jobs_of(wanted, table.parent)
    assert [job.name for job in jobs] == ["plain-seed0", "naive-seed0", "plain-seed1", "naive-seed1"]
    values = {"plain": [0.50, 0.60], "naive": [0.55, 0.75]}
    outcomes = [Outcome(job, {"a": {"top1": values[job.arm][job.seed]}}) for job in jobs]
    plain, naive = summarise(wanted, outcomes)
    assert (plain.value, naive.value) == pytest.approx((55, 65))
    half = stats.t.ppf(0.975, 1) * np.std([50, 60], ddof=1) / math.sqrt(2)
    assert (plain.low, plain.high) == pytest.approx((55 - half, 55 + half))
    gain = stats.t.ppf(0.975, 1) * np.std([5, 15], ddof=1) / math.sqrt(2)
    assert (naive.gain, naive.gain_low) == pytest.approx((10, 10 - gain))
    assert math.isnan(plain.gain)
    assert math.isnan(plain.published)
    assert naive.published == 9.5
    page = markdown(wanted, [plain, naive])
    assert f"| naive | 2 | 65.00 ± {stats.t.ppf(0.975, 1) * 10:.2f} (+10.00 ± {gain:.2f}) | 9.5 |" in page
    # An arm whose second seed is missing is compared on the first alone.
    _, naive = summarise(wanted, outcomes[:3])
    assert (naive.seeds, naive.gain) == (1, pytest.approx(5))


def test_gains_are_tested_together(table: Path) -> None:
    wanted = load_table(write_table(table, seeds=[0, 1, 2, 3]))
    noise = {"plain": [0.0, 0.0, 0.0, 0.0], "naive": [1.0, 1.1, 0.9, 1.05]}
    small = {"plain": [0.0, 0.0, 0.0, 0.0], "naive": [0.2, -0.1, 0.3, -0.2]}
    outcomes = [
        Outcome(
            job,
            {
                "a": {"top1": (50 + job.seed + noise[job.arm][job.seed]) / 100},
                "b": {"top1": (60 - job.seed + small[job.arm][job.seed]) / 100},
            },
        )
        for job in jobs_of(wanted, table.parent)
    ]
    rows = {(row.arm, row.student): row for row in summarise(wanted, outcomes)}
    first, second = (stats.ttest_1samp(values["naive"], 0).pvalue for values in (noise, small))
    assert rows["naive", "a"].p == pytest.approx(first, rel=1e-6)
    assert rows["naive", "a"].p_holm == pytest.approx(2 * first, rel=1e-6)
    assert rows["naive", "b"].p_holm == pytest.approx(second, rel=1e-6)
    assert math.isnan(rows["plain", "a"].p_holm)
    assert [row.differs for row in rows.values()] == [False, False, True, False]
    page = markdown(wanted, list(rows.values()))
    half = stats.t.ppf(0.975, 3) * np.std(noise["naive"], ddof=1) / 2
    assert f"(**+{np.mean(noise['naive']):.2f} ± {half:.2f}**)" in page
    assert "in bold if it differs from 0 at 5% over all 2 gains of the table (paired t test, Holm)" in page
    short = short_markdown(wanted, list(rows.values())).splitlines()
    assert short[0] == "| | a | b |"
    assert short[2].startswith("| plain | 51.50 ± ")
    assert short[3].startswith("| naive | **52.51 ± ")
    assert short[3].count(" ↑ |") == 1
    assert short[-1].startswith("Test top1, %: mean over 4 seeds with the 95% interval. Arrows: differs from")


def test_a_table_without_a_baseline_tests_nothing(table: Path) -> None:
    wanted = load_table(write_table(table, baseline=None))
    outcomes = [Outcome(job, {"a": {"top1": 0.5}}) for job in jobs_of(wanted, table.parent)]
    rows = summarise(wanted, outcomes)
    assert all(math.isnan(row.p) and not row.differs for row in rows)
    assert "Holm" not in markdown(wanted, rows) + short_markdown(wanted, rows)
    assert short_markdown(wanted, []).count("\n") > 1


def test_only_some_arms(table: Path) -> None:
    wanted = load_table(table)
    jobs = jobs_of(wanted, table.parent)
    assert only_arms(wanted, jobs, ()) == jobs
    assert [job.name for job in only_arms(wanted, jobs, ("naive",))] == ["naive-seed0", "naive-seed1"]
    found = compare(table, "--only", "naive", "--only", "nobody")
    assert found.exit_code == 2
    assert found.output == "kdcl: error: --only: no arm is named 'nobody' (have plain, naive)\n"
    assert not (table.parent / "runs").exists()


@pytest.fixture
def command() -> Any:
    """The module of the command, whose name in its package is the command itself."""
    return importlib.import_module("kdcl_dist.cli.compare")


def test_the_page_compares_all_arms_with_the_baseline(
    table: Path, command: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[str] = []
    monkeypatch.setattr("kdcl_dist.report.writing.write_report", lambda runs, out: shown.extend(runs))
    wanted = load_table(write_table(table, baseline="naive"))
    jobs = jobs_of(wanted, table.parent)
    outcomes = [Outcome(job, {"a": {"top1": 0.5}}) for job in jobs[:3]]
    command._report(wanted, [*outcomes, Outcome(jobs[3], error=RecipeError("failed"))], Folder("runs"))
    names = [uri.rpartition("/")[2] for uri in shown]
    assert names == ["naive-seed0", "plain-seed0", "plain-seed1"]


def test_finished_runs_only_tell_their_trackers(
    table: Path, command: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, list[str]] = {}

    def note(name: str) -> None:
        def asked_for(jobs: list[Job], *_: Any, **__: Any) -> list[Outcome]:
            asked[name] = [job.name for job in jobs]
            return []

        monkeypatch.setattr(f"kdcl_dist.compare.runs.{name}", asked_for)

    note("run_jobs")
    note("tell_trackers")
    arms = [
        {"name": "plain", "recipe": "tiny.yaml"},
        {"name": "naive", "recipe": "tiny.yaml", "set": ["tracking=[tensorboard, csv]"]},
    ]
    wanted = load_table(write_table(table, arms=arms))
    jobs = jobs_of(wanted, table.parent)
    done = [Outcome(job, {"a": {"top1": 0.5}}) for job in jobs[:2]]
    command._run(wanted, jobs, done, "runs", "local", None, Console(file=io.StringIO()))
    assert asked == {"run_jobs": ["plain-seed1", "naive-seed1"], "tell_trackers": ["naive-seed0"]}


def test_the_median_and_the_loss(table: Path) -> None:
    wanted = load_table(write_table(table, metric="loss", statistic="median", seeds=[0, 1, 2]))
    outcomes = [
        Outcome(job, {"a": {"loss": [0.5, 0.9, 0.6][job.seed] - 0.1 * (job.arm == "naive")}})
        for job in jobs_of(wanted, table.parent)
    ]
    plain, naive = summarise(wanted, outcomes)
    assert (plain.value, plain.low, plain.high) == pytest.approx((0.6, 0.5, 0.9))
    assert naive.gain == pytest.approx(-0.1)
    assert "0.6000 [0.5000, 0.9000]" in markdown(wanted, [plain, naive])
    assert "fewer than 6 seeds" in markdown(wanted, [plain, naive])
    assert naive.p == pytest.approx(stats.binomtest(0, 3).pvalue)
    assert "(sign test, Holm)" in markdown(wanted, [plain, naive])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sedes": [1]}, ["sedes", "seeds"]),
        ({"seeds": []}, ["seeds"]),
        ({"seeds": [1, 1]}, ["seeds", "differ"]),
        ({"metric": "auc"}, ["metric", "auc"]),
        ({"statistic": "max"}, ["statistic", "max"]),
        ({"baseline": "none"}, ["baseline", "'none'", "plain"]),
        ({"arms": []}, ["arms"]),
        ({"arms": [{"name": "x", "recipe": "tiny.yaml"}] * 2, "baseline": None}, ["arms", "x"]),
        ({"arms": [{"name": "x", "recipe": "none.yaml"}], "baseline": None}, ["arms.x", "none.yaml"]),
        ({"arms": [{"name": "x", "recipe": "tiny.yaml", "set": ["epochs=0"]}], "baseline": "x"}, ["epochs"]),
        (
            {"arms": [{"name": "x", "recipe": "tiny.yaml", "published": {"z": 1.0}}], "baseline": "x"},
            ["arms.x.published", "z"],
        ),
    ],
)
def test_mistakes_in_a_table(table: Path, changes: dict[str, object], words: list[str]) -> None:
    write_table(table, **changes)
    with pytest.raises(RecipeError) as caught:
        jobs_of(load_table(table), table.parent)
    assert all(word in str(caught.value) for word in words), caught.value
    assert "\n" not in str(caught.value)
    assert compare(table).exit_code == 2

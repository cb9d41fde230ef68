"""kdcl compare: tables, and runs that are skipped, resumed, failed, stopped."""

from __future__ import annotations

import csv
import math
import threading
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from click.testing import CliRunner, Result
from cohorts import MakeRecipe
from scipy import stats

from kdcl_dist.cli import kdcl
from kdcl_dist.compare.experiment import jobs_of, load_table
from kdcl_dist.compare.runs import Outcome, run_jobs
from kdcl_dist.compare.summary import markdown, summarise
from kdcl_dist.config.recipe_file import dump_recipe
from kdcl_dist.errors import RecipeError
from kdcl_dist.run.record import read_record
from kdcl_dist.run.storage import Folder


@pytest.fixture
def table(make_recipe: MakeRecipe, tmp_path: Path) -> Path:
    """Two arms and two seeds of a tiny recipe."""
    (tmp_path / "tiny.yaml").write_text(dump_recipe(make_recipe("epochs=1")))
    return write_table(tmp_path / "table.yaml")


def write_table(path: Path, **changes: object) -> Path:
    arms = [
        {"name": "plain", "recipe": "tiny.yaml", "set": ["distillation.method=none"]},
        {
            "name": "naive",
            "recipe": "tiny.yaml",
            "set": ["distillation.method=naive"],
            "published": {"a": 9.5},
        },
    ]
    fields = {"name": "both", "title": "Both", "seeds": [0, 1], "baseline": "plain", "arms": arms}
    path.write_text(yaml.safe_dump(fields | changes))
    return path


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


def compare(table: Path, *more: str) -> Result:
    arguments = ["compare", str(table), "--launcher", "local", "--storage", str(table.parent / "runs"), *more]
    return CliRunner().invoke(kdcl, arguments)


def test_runs_are_made_once_and_damaged_ones_again(table: Path) -> None:
    first = compare(table)
    assert first.exit_code == 0, first.output
    folder = table.parent / "runs" / "both"
    assert "[4 of 4]" in first.output
    assert ">naive<" in (folder / "report.html").read_text()
    assert (folder / "table-top1.md").read_text() in first.output
    rows = list(csv.DictReader((folder / "table-top1.csv").open()))
    assert [(row["arm"], row["student"]) for row in rows] == [
        (arm, student) for arm in ("plain", "naive") for student in ("a", "b", "ensemble")
    ]
    parquet = pq.read_table(folder / "table-top1.parquet").to_pylist()
    assert [f"{row['value']}" for row in parquet] == [row["value"] for row in rows]
    values = list(csv.DictReader((folder / "values-top1.csv").open()))
    assert len(values) == 2 * 2 * 3
    record = read_record(Folder(str(folder / "naive-seed1")))
    own = [v for v in values if (v["arm"], v["seed"], v["student"]) == ("naive", "1", "a")]
    assert float(own[0]["top1"]) == pytest.approx(100 * record["results"]["a"]["top1"])

    untouched = (folder / "plain-seed0/run.json").stat().st_mtime_ns
    (folder / "naive-seed0/run.json").write_text("{}")  # as if it had been killed after its checkpoint
    second = compare(table)
    assert second.exit_code == 0, second.output
    assert (folder / "plain-seed0/run.json").stat().st_mtime_ns == untouched
    assert read_record(Folder(str(folder / "naive-seed0")))["state"] == "finished"
    assert list(csv.DictReader((folder / "values-top1.csv").open())) == values


def test_a_failed_arm_is_named_and_the_rest_goes_on(table: Path) -> None:
    arms = yaml.safe_load(table.read_text())["arms"]
    broken = {"name": "broken", "recipe": "tiny.yaml", "set": ["students.b.model=nets:broken"]}
    found = compare(write_table(table, arms=[broken, *arms], seeds=[0]))
    assert found.exit_code == 1
    assert "1 of 3 runs failed: broken-seed0" in found.output
    assert "[1 of 3] broken-seed0: FAILED" in found.output
    assert "| naive | 1 |" in found.output
    other = compare(write_table(table, seeds=[0], arms=[{**arms[0], "set": ["batch_size=8"]}]))
    assert other.exit_code == 1
    assert "another recipe, which differs in batch_size: 16 -> 8" in other.output


def test_a_stopped_comparison_begins_nothing_more(table: Path) -> None:
    jobs = jobs_of(load_table(table), table.parent)
    stop, storage = threading.Event(), str(table.parent / "runs")

    def stop_at_first(outcome: Outcome) -> None:
        stop.set()

    some = run_jobs(
        jobs, storage, launcher="local", at_once=1, stop=stop, watch=lambda *_: None, done=stop_at_first
    )
    assert 1 <= len(some) < len(jobs)
    rest = run_jobs(
        jobs,
        storage,
        launcher="local",
        at_once=2,
        stop=threading.Event(),
        watch=lambda *_: None,
        done=lambda outcome: None,
    )
    assert [outcome.job.name for outcome in rest] == [job.name for job in jobs]
    assert [outcome.error for outcome in rest] == [None] * 4


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

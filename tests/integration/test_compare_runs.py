"""The runs of `kdcl compare`: skipped, resumed, failed, stopped."""

from __future__ import annotations

import csv
import re
import threading
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from cohorts import MakeRecipe
from experiments import compare, make_table, write_table

from kdcl_dist.compare import runs
from kdcl_dist.compare.experiment import jobs_of, load_table
from kdcl_dist.compare.runs import Outcome, run_jobs
from kdcl_dist.config.recipe import Recipe
from kdcl_dist.config.recipe_file import dump_recipe
from kdcl_dist.errors import RecipeError
from kdcl_dist.run.record import read_record
from kdcl_dist.run.storage import Folder


@pytest.fixture
def table(make_recipe: MakeRecipe, tmp_path: Path) -> Path:
    return make_table(make_recipe, tmp_path)


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
    assert "[4 of 4] naive-seed0: " in second.output
    assert "3 of 4 runs are finished, 1 to train, 1 at once: about " in second.output
    assert (folder / "readme-top1.md").read_text().count("\n| ") == 3

    third = compare(write_table(table, seeds=[0, 1, 5]), "--only", "naive")
    assert third.exit_code == 0, third.output
    assert "2 of 3 runs are finished, 1 to train" in third.output
    assert (folder / "plain-seed0/run.json").stat().st_mtime_ns == untouched
    rows = list(csv.DictReader((folder / "values-top1.csv").open()))
    assert {(row["arm"], row["seed"]) for row in rows} == {
        *((arm, seed) for arm in ("plain", "naive") for seed in "01"),
        ("naive", "5"),
    }
    assert [row for row in rows if row["seed"] != "5"] == values
    again = compare(table, "--only", "naive")
    assert "all runs are finished\n" in again.output
    assert compare(table, "--only", "naive", "--dry-run", "2").output == "all runs are finished\n"


def test_finished_runs_tell_their_trackers_what_those_lack(
    table: Path, make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is trained for that, and a tracker that is missing costs no result."""
    (table.parent / "tiny.yaml").write_text(dump_recipe(make_recipe("epochs=1", "tracking=[csv]")))
    tracked = write_table(table, seeds=[0])
    first = compare(tracked)
    assert first.exit_code == 0, first.output
    folder = table.parent / "runs" / "both"
    wanted = [(folder / f"{arm}-seed0/metrics.csv").read_bytes() for arm in ("plain", "naive")]
    (folder / "naive-seed0/tracking/csv.json").unlink()
    (folder / "naive-seed0/metrics.csv").unlink()
    second = compare(tracked)
    assert second.exit_code == 0, second.output
    assert "all runs are finished\n" in second.output
    assert "to train" not in second.output
    assert [(folder / f"{arm}-seed0/metrics.csv").read_bytes() for arm in ("plain", "naive")] == wanted

    def is_missing(recipe: Recipe) -> None:
        raise RecipeError("tracking.0: it is not installed")

    monkeypatch.setattr(runs, "check_trackers", is_missing)
    third = compare(tracked)
    assert third.exit_code == 1, third.output
    assert "naive-seed0: tracking.0: it is not installed" in third.output
    assert (folder / "table-top1.md").read_text() in third.output, "the results count all the same"
    assert "| naive |" in third.output


def test_a_dry_run_tells_the_time_and_leaves_nothing(table: Path) -> None:
    found = compare(table, "--dry-run", "2", "--only", "naive")
    assert found.exit_code == 0, found.output
    first, last = found.output.splitlines()
    assert re.fullmatch(r"naive: 2 runs of about .+ \(a start of .+ and 1 epochs of 3 steps of .+ s\)", first)
    assert re.fullmatch(r"2 to train, 1 at once: about .+, without tests and checkpoints", last)
    assert not (table.parent / "runs").exists()


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
        jobs,
        storage,
        launcher="local",
        max_concurrent_runs=1,
        stop=stop,
        on_event=lambda *_: None,
        on_outcome=stop_at_first,
    )
    assert 1 <= len(some) < len(jobs)
    rest = run_jobs(
        jobs,
        storage,
        launcher="local",
        max_concurrent_runs=2,
        stop=threading.Event(),
        on_event=lambda *_: None,
        on_outcome=lambda outcome: None,
    )
    assert [outcome.job.name for outcome in rest] == [job.name for job in jobs]
    assert [outcome.error for outcome in rest] == [None] * 4

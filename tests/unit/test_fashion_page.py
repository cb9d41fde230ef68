"""examples/fashion: the page and its figures are those of the CSV files; the tables can be trained."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from cohorts import ROOT

from examples.fashion import analysis, page
from examples.fashion.intervals_chart import interval_chart
from kdcl_dist.compare.experiment import jobs_of, load_table
from kdcl_dist.errors import RunFolderError
from kdcl_dist.run.metrics import MetricsTable
from kdcl_dist.run.record import new_record
from kdcl_dist.run.storage import Folder
from kdcl_dist.utils.intervals import mean_interval

RESULTS = ROOT / "docs/results"


def write(path: Path, heads: str, rows: list[tuple[object, ...]]) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([heads.split(), *rows])


@pytest.fixture
def results(tmp_path: Path) -> page.Results:
    """Three seeds of none and dml, two of naive; naive's cosine goes with its gain."""
    top1 = {"none": (80.0, 81.0, 83.0), "dml": (79.0, 79.0, 82.0), "naive": (82.0, 82.5)}
    rows = [(arm, seed, "large", v, 0.5) for arm, values in top1.items() for seed, v in enumerate(values)]
    write(tmp_path / "results.csv", "arm seed student top1 loss", rows)
    write(
        tmp_path / "analysis.csv",
        "arm seed student name value",
        [("dml", 0, "large", "gradient_cosine", -0.5)],
    )
    write(
        tmp_path / "noise.csv",
        "arm seed student deviation top1 loss",
        [("dml", 0, "large", 0.03, 70.0, 1.25)],
    )
    return page.Results(tmp_path)


def test_the_page_and_its_figures_are_those_of_the_csv_files() -> None:
    found = page.Results(RESULTS / "fashion")
    assert (RESULTS / "fashion.md").read_text(encoding="utf-8") == page.page(found)
    for name, picture in page.figures(found).items():
        assert (RESULTS / "fashion" / name).read_text(encoding="utf-8") == picture


def test_a_table_pairs_by_seed_and_says_what_it_lacks(results: page.Results) -> None:
    text = page.arms_table("a", results)
    gain = mean_interval([-1.0, -2.0, -1.0])
    assert f"({gain.value:+.2f} ± {gain.half_width:.2f})" in text
    assert "| `naive` | 2 of 10 | 82.25 ± 3.18 (+1.75 ± 3.18) |" in text
    assert "| `mean` | 0 of 10 |  |" in text
    assert text.startswith("**Incomplete: 8 of ")
    assert page.progress(results).startswith("**Incomplete: 8 of ")
    assert "| `dml` |  (0) |  (0) | -1.33 ± 1.43 (3) |  (0) |" in page.gap_table(results)
    assert "| `dml`, large | 1 of 5 | 0.500 | 1.250 |" in page.noise_table(results)


def test_a_quantity_that_goes_with_the_gain_has_the_correlation_one(tmp_path: Path) -> None:
    arms = ["dml", "mean", "naive", "linear", "min_logit", "general"]
    rows = [("none", seed, "large", 80.0, 0.5) for seed in (0, 1)]
    rows += [
        (arm, seed, "large", 80.0 + place + seed, 0.5) for place, arm in enumerate(arms) for seed in (0, 1)
    ]
    measured = [
        (arm, seed, "large", "win_share", 0.1 * place) for place, arm in enumerate(arms) for seed in (0, 1)
    ]
    measured += [(arm, 0, "large", "gradient_cosine", -0.1 * place) for place, arm in enumerate(arms)]
    write(tmp_path / "results.csv", "arm seed student top1 loss", rows)
    write(tmp_path / "analysis.csv", "arm seed student name value", measured)
    write(tmp_path / "noise.csv", "arm seed student deviation top1 loss", [])
    text = page.predictor_table(page.Results(tmp_path))
    assert "| share of samples on which it is the best | +1.00 ± 0.00 |  |" in text
    assert "| cosine of its two gradients | -1.00 |  |" in text


def record_run(folder: Path, state: str, top1: float) -> None:
    """A run of two epochs with two measured steps each."""
    run, table = Folder(str(folder)), MetricsTable(Folder(str(folder)))
    new_record(run, state=state, results={"large": {"loss": 0.5, "top1": top1, "top5": 1.0}})
    for epoch in (0, 1):
        for step in (0, 1):
            table.add("large", epoch, step, "analysis", {"error": epoch + step})
            table.add("large", epoch, step, "train", {"loss": 7.0})
        table.end_epoch(epoch)
    table.flush(5.0)


def test_the_csv_files_have_the_finished_runs_and_their_means(tmp_path: Path) -> None:
    record_run(tmp_path / "runs/dml-seed1", "finished", 0.75)
    record_run(tmp_path / "runs/dml-seed0", "running", 0.5)
    (tmp_path / "runs/dml-seed1/noise.csv").write_text(
        "deviation,repeat,student,loss,top1,top5\n0.03,0,large,1.5,0.5,1\n"
    )
    (tmp_path / "runs/report.html").write_text("")
    analysis.main(tmp_path / "runs", tmp_path / "out")
    lines = {path.name: path.read_text().splitlines()[1:] for path in (tmp_path / "out").glob("*.csv")}
    assert lines == {
        "results.csv": ["dml,1,large,75.00,0.50000"],
        "noise.csv": ["dml,1,large,0.03,50.00,1.50000"],
        "analysis.csv": ["dml,1,large,error,1.00000"],
    }
    by_epoch = pq.read_table(tmp_path / "out/analysis.parquet").to_pylist()
    assert [(row["epoch"], row["value"]) for row in by_epoch] == [(0, 0.5), (1, 1.5)]
    with pytest.raises(RunFolderError, match="no finished run"):
        analysis.main(tmp_path, tmp_path / "out")


def test_a_chart_has_a_point_for_each_interval_and_none_where_there_is_none() -> None:
    chart = interval_chart(
        "t", "u", "a", ["x", "y"], {"dml": [mean_interval([1.0, 3.0]), None], "mean": [None, None]}
    )
    assert chart.count('class="bar"') == 1
    assert len(re.findall(r'class="m"', chart)) == 3  # one point, two in the legend
    assert interval_chart("t", "u", "a", ["x"], {"dml": [None]}).endswith("</svg>\n")


def test_the_tables_are_recipes_and_their_shared_arms_are_the_same() -> None:
    folder, known = ROOT / "examples/fashion", {}
    tables = [
        load_table(path) for path in sorted(folder.glob("*.yaml")) if path.stem not in ("recipe", "equal")
    ]
    for table in tables:
        fresh = [arm for arm in table.arms if (table.name, arm.name) not in known]
        assert all(known.setdefault((table.name, arm.name), arm) == arm for arm in table.arms)
        if fresh:
            jobs_of(table.model_copy(update={"seeds": [7], "arms": fresh}), folder)
    assert {name for name, _ in known} == {"fashion", "fashion-tuning"}
    wanted = {method + end for method in page.METHODS for end in [*page.PARTNERS, "_views", "_four"]}
    wanted |= {method + end for method in ("none", "dml", "linear", "general") for end in page.SIZES.values()}
    assert wanted <= {arm for _, arm in known}

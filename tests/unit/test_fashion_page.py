"""examples/fashion: the page and its figures are those of the CSV files; the tables can be trained."""

from __future__ import annotations

import csv
import math
import re
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from cohorts import ROOT

from examples.fashion import again, analysis, findings, page, tables
from examples.fashion import run as fashion_run
from examples.fashion.intervals_chart import interval_chart
from examples.fashion.predictors import predictor_table, predictors_told, rank_correlation
from examples.fashion.results import METHODS, PARTNERS, SIZES, Results, direction, interval, marked, shown
from kdcl_dist.compare.experiment import Job, jobs_of, load_table
from kdcl_dist.errors import RecipeError, RunFolderError
from kdcl_dist.run.metrics import MetricsTable
from kdcl_dist.run.record import new_record
from kdcl_dist.run.storage import Folder
from kdcl_dist.utils.intervals import mean_interval

RESULTS = ROOT / "docs/results"


def write(path: Path, heads: str, rows: list[tuple[object, ...]]) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([heads.split(), *rows])


def of_rows(folder: Path, rows: list[tuple[object, ...]]) -> Results:
    """Results of these rows of results.csv, without anything measured."""
    write(folder / "results.csv", "arm seed student top1 loss", rows)
    write(folder / "analysis.csv", "arm seed student name value", [])
    write(folder / "noise.csv", "arm seed student deviation top1 loss", [])
    return Results(folder)


@pytest.fixture
def results(tmp_path: Path) -> Results:
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
    return Results(tmp_path)


def test_the_page_and_its_figures_are_those_of_the_csv_files() -> None:
    found = Results(RESULTS / "fashion")
    assert (RESULTS / "fashion.md").read_text(encoding="utf-8") == page.page(found)
    for name, picture in page.figures(found).items():
        assert (RESULTS / "fashion" / name).read_text(encoding="utf-8") == picture
    for name, heads in page.READMES.items():
        text = (ROOT / name).read_text(encoding="utf-8")
        assert page.with_table(text, tables.short_table(heads, found)) == text


def test_a_table_pairs_by_seed_and_says_what_it_lacks(results: Results) -> None:
    text = tables.arms_table("a", results)
    gain = mean_interval([-1.0, -2.0, -1.0])
    assert f"({gain.value:+.2f} ± {gain.half_width:.2f})" in text
    assert "| `naive` | 2 of 10 | 82.25 (+1.75) |" in text
    assert "| `mean` | 0 of 10 |  |" in text
    assert text.startswith("**Incomplete: 8 of ")
    assert tables.progress(results).startswith("**Incomplete: 8 of ")
    assert "| `dml` |  |  | -1.33 ± 1.43 (3) |  |  |" in tables.gap_table(results)
    assert "| `dml`, large | 1 of 5 | 0.500 | 1.250 |" in tables.noise_table(results)
    assert (
        tables.who_gains("a", results)
        == "- `large` is not clear of zero with `dml`; has too few runs with `naive`."
    )
    assert findings.gain(results, "large", "dml") == "shows no clear difference (-1.33 ± 1.43)"
    assert findings.gain(results, "large", "general") == "has no run yet"
    assert len(results.within([0]).of("dml", "large")) == 1


def test_gains_are_marked_where_they_hold_together() -> None:
    sure, maybe = {0: 1.0, 1: 1.1, 2: 0.9, 3: 1.0, 4: 1.0}, {0: 1.0, 1: 3.0, 2: 1.0, 3: 0.5, 4: 3.0}
    assert findings.told(maybe) == "gains 1.70 ± 1.50 points"
    assert findings.told({seed: -value for seed, value in maybe.items()}) == "loses 1.70 ± 1.50 points"
    assert findings.told({0: 3.0, 1: 3.0}) == "has too few runs yet (+3.00)"
    assert marked([maybe]) == ["**+1.70 ± 1.50**"]
    noise = {0: 0.5, 1: -0.5, 2: 0.0, 3: 0.1, 4: -0.1}
    found = marked([sure, maybe, noise, {}, {0: 2.0, 1: 2.0}])
    assert found == ["**+1.00 ± 0.09**", "+1.70 ± 1.50", "+0.00 ± 0.45", "", "+2.00"]


def test_what_does_not_compare_has_no_gain(tmp_path: Path) -> None:
    top1 = [("none", "large", 80.0), ("none", "small", 70.0), ("none", "ensemble", 81.0)]
    top1 += [
        ("teacher_small", "large", 80.0),
        ("teacher_small", "small", 71.0),
        ("teacher_small", "ensemble", 82.0),
    ]
    top1 += [("alone", "large", 80.5), ("alone", "ensemble", 80.5)]
    rows = [(arm, seed, student, value, 0.5) for arm, student, value in top1 for seed in (0, 1)]
    found = of_rows(tmp_path, rows)
    assert found.gain("teacher_small", "large", "none") == {}
    assert found.gain("teacher_small", "small", "none") == {0: 1.0, 1: 1.0}
    assert found.gain("teacher_small", "ensemble", "none") == {0: 1.0, 1: 1.0}
    assert found.gain("alone", "ensemble", "none") == {}


def test_the_method_of_table_h_is_the_one_that_lifts_the_small_network_most(tmp_path: Path) -> None:
    lifts = {"none": 0.0, "naive": 0.1, "linear": 0.4, "min_logit": 0.2, "general": 0.3, "dml": 0.9}
    rows = [(arm, seed, "small", 70 + lift, 0.5) for arm, lift in lifts.items() for seed in range(5)]
    rows += [("naive", seed, "small", 90.0, 0.5) for seed in range(5, 10)]
    best, why = findings.best_method(of_rows(tmp_path, rows))
    assert best == "linear"
    assert why.startswith("`naive` +0.10 ± 0.00, `linear` +0.40 ± 0.00")
    assert "is `linear`" in findings.choice(of_rows(tmp_path, rows))
    assert "Not chosen yet** (naive: 4 of 5" in findings.choice(of_rows(tmp_path, rows).within({0, 1, 2, 3}))


def test_findings_are_worded_as_the_intervals_say(tmp_path: Path) -> None:
    near = (-0.1, 0.0, 0.1)
    top1 = {"none": 80.0, "none_held_out": 78.0, "dml": 77.0, "naive": 79.0, "general": 78.0, "mean": 80.0}
    top1 |= {"dml_twin": 80.0, "dml_nano": 75.0}
    rows = [
        (arm, seed, "large", value + off * (arm not in {"none", "none_held_out"}), 0.5)
        for arm, value in top1.items()
        for seed, off in enumerate(near)
    ]
    found = of_rows(tmp_path, rows)
    cosines = {"dml": -0.5, "naive": 0.4, "general": 0.3}
    found.figures = {
        (arm, "large", "gradient_cosine"): {seed: value + off for seed, off in enumerate(near)}
        for arm, value in cosines.items()
    }
    others = findings.verdicts(found, "large", "others")
    assert others.startswith(
        "loses with `dml` (-3.00 ± 0.25); is not clear of zero with `mean` (+0.00 ± 0.25) and "
    )
    assert others.endswith("`general` over `none_held_out` (+0.00 ± 0.25)")
    assert findings.verdicts(found, "large", "label") == "loses with `naive` (-1.00 ± 0.25)"
    assert findings.conflict_answer(found) == "- conflict with `dml`\n- agree with `naive`"
    assert findings.measured(found, "large", "dml", "gradient_cosine") == "-0.50 ± 0.25"
    assert findings.measured(found, "large", "mean", "gradient_cosine") == "(no run yet)"
    answer = findings.dml_answer(found)
    assert answer.startswith("`dml` harms the large network beside 2 of the 3 partners with runs enough:\n")
    assert (
        "- beside 1 M (medium) it has no run yet\n- beside 0.3 M (small) it loses 3.00 ± 0.25 points\n"
        in answer
    )
    assert answer.endswith("its gain changes by -5.00 ± 0.00: a growing gap does harm")


def test_what_the_other_documents_and_page_txt_say_holds() -> None:
    """README.md, docs/method.md and page.txt: a change of these needs other words there."""
    found = Results(RESULTS / "fashion")
    large, small = ({m: interval(found.gain(m, who, "none")) for m in METHODS} for who in ("large", "small"))
    assert {direction(gain) for gain in large.values()} == {-1}
    assert min(METHODS, key=lambda m: large[m].value) == "dml"
    assert all(abs(gain.value) < 0.7 for gain in small.values())
    assert {m for m, gain in small.items() if direction(gain) > 0} == {"mean"}
    assert {m for m, gain in small.items() if direction(gain) < 0} == {"naive", "min_logit", "general"}
    beside_as_few = [interval(found.gain("general", who, "none_held_out")) for who in ("large", "small")]
    assert [direction(gain) for gain in beside_as_few] == [0, 1]
    for name in page.READMES:
        text = (ROOT / name).read_text(encoding="utf-8")
        assert all(shown(gain, "+") in text for gain in beside_as_few)
    cosines = {m: interval(found.measured(m, "large", "gradient_cosine")) for m in METHODS}
    assert {m for m in METHODS if direction(cosines[m]) > 0} >= {"naive", "linear", "min_logit"}
    assert {direction(cosines[m]) for m in ("dml", "mean")} == {-1}
    assert {f"{cosines[m].value:.2f}" for m in ("dml", "mean")} == {"-0.06"}
    of_small = {m: interval(found.measured(m, "small", "gradient_cosine")).value for m in METHODS}
    assert min(METHODS, key=of_small.__getitem__) == "mean"
    assert max(METHODS, key=of_small.__getitem__) == "min_logit"


def test_equal_values_share_a_rank() -> None:
    assert rank_correlation([(1.0, 5.0), (2.0, 5.0), (3.0, 9.0)]) == pytest.approx(0.866, abs=1e-3)
    assert math.isnan(rank_correlation([(1.0, 5.0), (2.0, 5.0)]))


#: So many that equal correlations are hardly chance.
MORE = (2, 3, 4, 5, 6)


def test_a_quantity_that_goes_with_the_gain_has_the_correlation_one(tmp_path: Path) -> None:
    arms = ["dml", "mean", "naive", "linear", "min_logit", "general"]
    rows = [("none", seed, "large", 80.0, 0.5) for seed in (0, 1)]
    rows += [
        (arm, seed, "large", 80.0 + place + seed, 0.5) for place, arm in enumerate(arms) for seed in (0, 1)
    ]
    measured = [
        (arm, seed, "large", "win_share", 0.1 * place) for place, arm in enumerate(arms) for seed in (0, 1)
    ]
    rows += [(*row[:1], seed, *row[2:]) for row in rows if row[1] == 0 for seed in MORE]
    measured += [(*row[:1], seed, *row[2:]) for row in measured if row[1] == 0 for seed in MORE]
    measured += [(arm, 0, "large", "gradient_cosine", -0.1 * place) for place, arm in enumerate(arms)]
    write(tmp_path / "results.csv", "arm seed student top1 loss", rows)
    write(tmp_path / "analysis.csv", "arm seed student name value", measured)
    write(tmp_path / "noise.csv", "arm seed student deviation top1 loss", [])
    text = predictor_table(Results(tmp_path))
    assert "| share of samples on which it is the best | **+1.00 ± 0.00** | **+1.00 ± 0.00** |  |" in text
    assert "| cosine of its two gradients | -1.00 | -1.00 |  |" in text
    assert predictors_told(Results(tmp_path)).startswith(
        "- `large`, all arms: share of samples on which it is the best (+1.00 ± 0.00).\n"
    )


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


def test_the_csv_files_have_the_finished_runs_and_their_means(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
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
    found = Results(tmp_path / "out")
    assert found.course("dml", "large", "error", [1, 2]) == [{1: 0.5}, {1: 1.5}]
    assert fashion_run.recorded_runs(tmp_path / "out") == {"dml-seed1"}
    job = again.job_of("dml-seed1")
    assert again.differing(job, tmp_path / "runs", tmp_path / "out") == []
    record_run(tmp_path / "runs/dml-seed1", "finished", 0.7501)
    assert again.differing(job, tmp_path / "runs", tmp_path / "out") == [
        "dml,1,large,75.00,0.50000",
        "dml,1,large,75.01,0.50000",
    ]
    with pytest.raises(RecipeError, match="no table has this run"):
        again.job_of("dml-seed99")
    for words, line in ((["a", "b", "x"], "x: no table has this run"), (["a"], "give the folder for")):
        assert again.command(words) == 2
        told = capsys.readouterr().err
        assert told.startswith(f"again: {line}")
        assert told.count("\n") == 1
    with pytest.raises(RunFolderError, match="no finished run"):
        analysis.main(tmp_path, tmp_path / "out")


def test_the_files_keep_the_rows_of_runs_that_another_machine_trained(tmp_path: Path) -> None:
    record_run(tmp_path / "first/dml-seed10", "finished", 0.5)
    record_run(tmp_path / "first/dml-seed2", "finished", 0.25)
    record_run(tmp_path / "second/dml-seed2", "finished", 0.75)
    record_run(tmp_path / "second/naive-seed0", "finished", 1.0)
    (tmp_path / "first/dml-seed10/noise.csv").write_text(
        "deviation,repeat,student,loss,top1,top5\n0.03,0,large,1.5,0.5,1\n"
    )
    for folder in ("first", "second"):
        analysis.main(tmp_path / folder, tmp_path / "out")
    for folder in ("first", "second"):
        shutil.copytree(tmp_path / folder, tmp_path / "both", dirs_exist_ok=True)
    analysis.main(tmp_path / "both", tmp_path / "at-once")
    for path in (tmp_path / "at-once").iterdir():
        assert path.read_bytes() == (tmp_path / "out" / path.name).read_bytes(), path.name
    assert Results(tmp_path / "out").top1["dml", "large"] == {2: 75.0, 10: 50.0}


def test_runs_that_are_recorded_train_again_for_their_networks_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[list[str]] = []
    tested: list[str] = []

    def run_jobs(jobs: list[Job], *_: object, **more: object) -> None:
        trained.append([job.name for job in jobs])

    monkeypatch.setattr(fashion_run, "run_jobs", run_jobs)
    monkeypatch.setattr(fashion_run, "test_under_noise", lambda job, folder: tested.append(job.name))
    arms = [arm.name for arm in tables.planned("a").arms]
    recorded = {f"{arm}-seed{seed}" for arm in arms for seed in range(10)} - {"dml-seed7"}
    fashion_run.main(tmp_path, [("a", 10), ("f", 5)], recorded, at_once=1)
    assert trained[0] == ["dml-seed7"]
    assert len(trained) == 2
    assert sorted(trained[1]) == sorted(tested)
    assert sorted(tested) == sorted(f"{arm}-seed{seed}" for arm in fashion_run.NOISY for seed in range(5))


def test_a_chart_has_a_point_for_each_interval_and_none_where_there_is_none() -> None:
    chart = interval_chart(
        "t", "u", "a", ["x", "y"], {"dml": [mean_interval([1.0, 3.0]), None], "mean": [None, None]}
    )
    assert chart.count('class="bar"') == 1
    assert len(re.findall(r'class="m"', chart)) == 2  # one point, and its series in the legend
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
    wanted = {method + end for method in METHODS for end in [*PARTNERS, "_views", "_four"]}
    wanted |= {method + end for method in ("none", "dml", "linear", "general") for end in SIZES.values()}
    assert wanted <= {arm for _, arm in known}
    assert load_table(folder / "h.yaml").baseline == findings.best_method(Results(RESULTS / "fashion"))[0]

"""`kdcl report`: what is on the page, and what is there when something is missing."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from damage import damaged
from hypothesis import given, settings
from reporting import Row, browse, in_memory, make_recipe, rows, write_run
from scipy import stats

from kdcl_dist.cli import kdcl
from kdcl_dist.errors import RunFolderError, StudentFailed
from kdcl_dist.report.arms import group
from kdcl_dist.report.page import page
from kdcl_dist.report.run_data import load
from kdcl_dist.report.writing import write_report
from kdcl_dist.run.metrics import read_metrics
from kdcl_dist.run.storage import Folder

CURVES = {"test-top1", "test-loss", "train-loss", "task-loss", "distillation-loss", "lr"}
ANALYSIS = {"weights", "wins", "linear-weights", "disagreement", "gradient-cosine", "gradient-ratio"}
TARGETS = {"targets-loss", "targets-entropy", "targets-wrong"}
FIGURES = CURVES | ANALYSIS | TARGETS | {"time"}
VOID = {"meta", "link", "br"}


class Page(HTMLParser):
    """A page taken apart: figures, tables as rows of cells, balanced tags, and all that it would load."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.figures: set[str] = set()
        self.tables: list[list[list[str]]] = []
        self.ids: list[str] = []
        self.loads: list[str] = []
        self.open: list[str] = []
        self.cell = False
        self.feed(html)
        self.close()
        assert self.open == []
        assert len(self.ids) == len(set(self.ids)), "an id is given twice"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        if tag not in VOID:
            self.open.append(tag)
        if identity := found.get("id"):
            self.ids.append(identity)
            if tag == "figure":
                self.figures.add(identity)
        self.loads += [str(found[name]) for name in ("src", "href") if name in found]
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
            self.cell = True

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        self.cell = self.cell and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        if self.cell:
            self.tables[-1][-1][-1] += data

    def table(self, *heads: str) -> dict[str, list[str]]:
        """The first table whose headings begin so: its rows by their first cell."""
        return self.all_tables(*heads)[0]

    def all_tables(self, *heads: str) -> list[dict[str, list[str]]]:
        """The tables whose headings begin so, in order."""
        chosen = [found for found in self.tables if tuple(found[0][: len(heads)]) == heads]
        return [{row[0]: row[1:] for row in found[1:]} for found in chosen]


def test_a_run_has_every_figure_and_loads_nothing(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", make_recipe())
    assert write_report([run]) == f"{run}/report.html"
    html = (tmp_path / "run" / "report.html").read_text()
    found = Page(html)
    assert found.figures == FIGURES
    assert found.loads == ["data:,"]
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)|url\(|@import", html)
    for figure in re.findall(r"<figure id=.*?</figure>", html, re.S):
        assert all(f"<{tag}" in figure for tag in ("title", "desc", "figcaption"))
    for fact in ("train.arrow", "test.arrow", "torch 2.6", "finished", "linear", "8 of 8 epochs", "1,234"):
        assert fact in html


def test_tables_say_what_was_recorded(tmp_path: Path) -> None:
    recipe = make_recipe()
    run = write_run(tmp_path / "run", recipe)
    frame = read_metrics(Folder(run)).to_pandas()
    found = Page(page([load(run)]))

    def values(split: str, student: str, name: str, first: int = 0) -> np.ndarray:
        chosen = frame[(frame.split == split) & (frame.student == student) & (frame.name == name)]
        return chosen[chosen.epoch >= first].value.to_numpy()

    results = found.table("student", "loss")
    for student in ("big", "small", "ensemble"):
        loss, top1, top5 = (values("test", student, name)[-1] for name in ("loss", "top1", "top5"))
        assert results[student] == [f"{loss:.4f}", f"{100 * top1:.2f}", f"{100 * top5:.2f}"]
    targets = found.table("ensemble", "loss (nats)")
    for target, cells in targets.items():
        loss, entropy, wrong = (
            values("analysis", "ensemble", f"{target}_{what}", first=6).mean()
            for what in ("loss", "entropy", "wrong")
        )
        assert cells == [f"{loss:.4f}", f"{entropy:.4f}", f"{100 * wrong:.4f}"]
    assert list(targets) == ["naive", "linear", "min_logit", "general", "mean"]
    phases = ("data_s", "forward_s", "wait_s", "exchange_s", "backward_s")
    means = [1000 * values("train", "big", phase).mean() for phase in phases]
    assert found.table("student", "data")["big"] == [f"{mean:.2f}" for mean in (*means, sum(means))]
    assert found.table("student", "host")["small"] == ["10.0.0.1", "cpu", "7", "1,234"]
    disagreement = 100 * values("analysis", "big", "disagreement/small", first=6).mean()
    assert f"big: big –, small {disagreement:.1f}, label" in unescape(page([load(run)]))


def test_validation_and_best_epochs_are_shown(tmp_path: Path) -> None:
    recipe = make_recipe("data.val_fraction=0.1", "checkpoint.best=top1")
    found = [row for row in rows(recipe) if row[3] != "test" or row[1] == 7]
    found = sorted(
        [*found, *((*row[:3], "val", row[4]) for row in rows(recipe) if row[3] == "test")],
        key=lambda row: row[1],
    )
    values = {"loss": 0.5, "top1": 0.75, "top5": 0.875}
    results = {"big": values | {"epoch": 8}, "big/best": values | {"epoch": 5}, "ensemble/best": values}
    run = write_run(
        tmp_path / "run", recipe, iter(found), results=results, stopped_early="early stopping: why"
    )
    shown = page([load(run)])
    assert "early stopping: why" in shown
    assert "the epoch whose top1 on validation samples was best" in unescape(shown)
    table = Page(shown).table("student", "loss")
    assert table["big/best"] == ["0.5000", "75.00", "87.50", "5"]
    assert table["ensemble/best"][-1] == ""
    assert [table[name][-1] for name in ("big", "small", "ensemble")] == ["8"] * 3
    assert {"val-top1", "val-loss", "test-top1"} <= set(Page(shown).figures)


def test_hostile_names_are_text(tmp_path: Path) -> None:
    attack = "<script>alert('x')</script><img src=x onerror=alert(1)>\"&"
    recipe = make_recipe(f"data.train={json.dumps(attack)}", f"students.0.model={json.dumps(attack)}")

    def hostile() -> Iterator[Row]:
        yield from rows(recipe)
        yield attack, 7, 31, "test", {"loss": 1.0, "top1": 0.5, "top5": 1.0}

    cause = StudentFailed(attack, student=attack, detail=attack).to_dict()
    record = {
        "cause": cause,
        "failures": {"run": attack, "causes": [cause]},
        "absences": [{"student": attack, "since": 1, "until": 2, "state_of": 1}],
        "spares": [{"student": attack, "at": attack, "host": attack}],
        "placement": {attack: {"host": attack, "pid": 1, "device": attack, "parameters": 1}},
        "versions": {attack: attack},
    }
    run = write_run(tmp_path / "<b>run", recipe, hostile(), **record)
    other = write_run(tmp_path / "other", make_recipe())
    for html in (page([load(run)]), page([load(run), load(other)])):
        assert html.count("<script>") == 1
        assert "<img" not in html
        assert "<b>" not in html
        assert unescape(html).count(attack) >= 14
        Page(html)


def test_no_analysis_is_said(tmp_path: Path) -> None:
    recipe = make_recipe()
    html = page([load(write_run(tmp_path / "run", recipe, rows(recipe, analysis=False)))])
    assert Page(html).figures == CURVES | {"weights", "time"}
    assert "no analysis was recorded" in html


def test_one_epoch(tmp_path: Path) -> None:
    recipe = make_recipe()
    html = page([load(write_run(tmp_path / "run", recipe, rows(recipe, epochs=1), state="running"))])
    assert Page(html).figures == FIGURES
    assert "1 of 8 epochs" in html
    assert not re.search(r"\bnan\b", html)


def test_a_run_that_failed_at_once_shows_why(tmp_path: Path) -> None:
    cause = StudentFailed("out of memory", student="big", step=0, phase="forward", detail="Traceback ...")
    uri = write_run(
        tmp_path / "run", make_recipe(), iter(()), state="failed", cause=cause.to_dict(), placement={}
    )
    html = page([load(uri)])
    assert Page(html).figures == set()
    assert "StudentFailed: out of memory (student big, step 0, phase forward)" in unescape(html)
    assert "No metrics were recorded" in html
    assert "The placement of the students was not recorded" in html
    good = write_run(tmp_path / "good", make_recipe("name=good", "epochs=3"))
    both = page([load(uri), load(good)])
    assert "Arm made: no run has finished" in both
    assert Page(both).table("arm", "runs", "big")["made"] == ["0", "–", "–", "–"]


def test_values_that_are_not_finite_are_left_out_and_counted() -> None:
    recipe = make_recipe()

    def diverged() -> Iterator[Row]:
        for student, epoch, step, split, values in rows(recipe):
            bad = student == "big" and epoch >= 4 and "loss" in values
            yield student, epoch, step, split, {**values, "loss": math.nan} if bad else values
        yield "small", 0, 0, "train", {"loss": math.inf}

    html = page([in_memory(recipe, diverged())])
    assert "21 recorded values are NaN or infinite" in html
    assert Page(html).table("student", "loss")["big"][0] == "–"
    assert Page(html).figures == FIGURES
    both = Page(page([in_memory(recipe, diverged()), in_memory(make_recipe("seed=1"))]))
    accuracy, losses = both.all_tables("arm", "runs", "big")
    assert losses["made"][1].endswith(" (1 of 2)")
    assert " of " not in accuracy["made"][1]


def test_seeds_are_averaged_with_intervals(tmp_path: Path) -> None:
    recipes = [make_recipe(f"seed={seed}", f"name=n{seed}") for seed in range(4)]
    recipes.append(make_recipe("distillation.method=naive"))
    runs = [load(write_run(tmp_path / str(i), recipe)) for i, recipe in enumerate(recipes)]
    arms = group(runs)
    assert [(arm.label, len(arm.runs)) for arm in arms] == [("n0", 4), ("made", 1)]
    assert arms[1].changes == ["distillation.method: 'linear' -> 'naive'"]
    top1 = np.array([100 * run.results()["big"]["top1"] for run in runs[:4]])
    half = stats.t.ppf(0.975, 3) * top1.std(ddof=1) / 2
    html = page(runs)
    accuracy = Page(html).table("arm", "runs", "big")
    assert accuracy["n0"][:2] == ["4", f"{top1.mean():.2f} ± {half:.2f}"]
    assert accuracy["made"][:2] == ["1", f"{100 * runs[4].results()['big']['top1']:.2f}"]
    epoch, mean, low, high = arms[0].curve("big", "top1", 100.0)[-1]
    assert (epoch, mean, low, high) == pytest.approx((8, top1.mean(), top1.mean() - half, top1.mean() + half))
    expected = {f"arms-{name}-{who}" for name in ("top1", "loss") for who in ("big", "small", "ensemble")}
    expected |= {f"mean-{name}-{who}" for name in ("top1", "loss") for who in ("big", "small", "ensemble")}
    expected |= {f"gain-{name}-{who}" for name in ("top1", "loss") for who in ("big", "small", "ensemble")}
    expected |= {f"run{i}-{name}" for i in range(1, 6) for name in FIGURES}
    assert Page(html).figures == expected
    assert html.count('<details class="run">') == 5


def test_gains_are_paired_by_seed() -> None:
    naive = "distillation.method=naive"
    arms = group(
        [in_memory(make_recipe(f"seed={seed}")) for seed in (0, 1, 2, 3)]
        + [in_memory(make_recipe(naive, f"seed={seed}")) for seed in (3, 1, 7)]
    )
    base, other = ({run.recipe.seed: 100 * run.results()["big"]["top1"] for run in arm.runs} for arm in arms)
    gains = [other[seed] - base[seed] for seed in (1, 3)]
    half = stats.t.ppf(0.975, 1) * np.std(gains, ddof=1) / math.sqrt(2)
    found, count = arms[1].gain(arms[0], "big", "top1", 100.0)
    assert count == 2
    assert found[:3] == pytest.approx((np.mean(gains), np.mean(gains) - half, np.mean(gains) + half))
    assert arms[1].gain(arms[0], "nobody", "top1")[1] == 0
    value = f"{found.value:.2f}".replace("-", "−")
    html = page([run for arm in arms for run in arm.runs])
    assert f"Points with intervals, in top-1 %: {arms[1].label} {value} (from" in html


def test_an_arm_whose_fields_have_the_seed_is_one(tmp_path: Path) -> None:
    """As `kdcl compare` names its folders: the names tell it from recipes that only happen to fit."""
    runs = []
    for seed in (0, 1, 2):
        recipe = make_recipe(f"seed={seed}", f"students.small.seed={seed}")
        runs.append(load(write_run(tmp_path / f"own-seed{seed}", recipe)))
    assert [(arm.label, len(arm.runs)) for arm in group(runs)] == [("own", 3)]
    other = make_recipe("seed=5", "students.small.seed=5")
    runs.append(load(write_run(tmp_path / "elsewhere", other)))
    assert [len(arm.runs) for arm in group(runs)] == [3, 1]


def test_arms_of_one_name_and_repeated_seeds_are_told_apart() -> None:
    runs = [in_memory(make_recipe(f"epochs={epochs}")) for epochs in (2, 2, 3)]
    arms = group(runs)
    assert [arm.label for arm in arms] == ["1: made", "2: made"]
    assert "seed 0 occurs more than once" in page(runs)


def test_students_that_differ_between_runs() -> None:
    other = make_recipe("students.1.name=tiny", "name=other")
    found = Page(page([in_memory(make_recipe()), in_memory(other)]))
    accuracy = found.tables[1]
    assert accuracy[0] == ["arm", "runs", "big", "small", "tiny", "ensemble"]
    assert [row[3] == "–" for row in accuracy[1:]] == [False, True]
    assert {"arms-top1-small", "arms-top1-tiny"} <= found.figures


def test_ten_long_runs_stay_small() -> None:
    arms = ("linear", "naive")
    cohort = ", ".join(f"{{name: {name}, model: cnn_small}}" for name in ("large", "small", "mlp"))
    recipes = [
        make_recipe(
            "epochs=200", f"students=[{cohort}]", f"distillation.method={arm}", f"seed={seed}", "name=" + arm
        )
        for arm in arms
        for seed in range(5)
    ]
    size = len(page([in_memory(recipe) for recipe in recipes]).encode())
    assert size < 1.5e6


def test_mistakes_are_one_line_and_code_2(tmp_path: Path) -> None:
    empty = write_run(tmp_path / "empty", make_recipe(), iter(()), state="starting")
    damaged = write_run(tmp_path / "damaged", make_recipe())
    Folder(damaged).write("metrics/epoch-0001.parquet", b"nothing")
    good = write_run(tmp_path / "good", make_recipe())
    (tmp_path / "file").write_text("")
    taken = write_run(tmp_path / "taken", make_recipe())
    (tmp_path / "taken" / "report.html").mkdir()
    for arguments, word in (
        ([taken], "choose another --out"),
        ([str(tmp_path / "none")], "not a run folder"),
        ([empty], "has no metrics yet (state: starting)"),
        ([damaged], "cannot be read"),
        ([good, "--out", str(tmp_path / "file" / "report.html")], "choose another --out"),
    ):
        result = CliRunner().invoke(kdcl, ["report", *arguments])
        assert result.exit_code == 2
        assert word in result.output
        assert result.output.count("\n") == 1
    with pytest.raises(RunFolderError):
        load(empty)


def test_where_the_page_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    one, two = (write_run(tmp_path / name, make_recipe(f"name={name}")) for name in ("one", "two"))
    for arguments, path in (
        ([one, one], tmp_path / "one" / "report.html"),
        ([one, two], tmp_path / "report.html"),
        ([one, "--out", "new/page.html"], tmp_path / "new" / "page.html"),
    ):
        result = CliRunner().invoke(kdcl, ["report", *arguments])
        assert result.exit_code == 0, result.output
        assert (tmp_path / result.output.strip()).samefile(path)


def test_in_a_browser(tmp_path: Path) -> None:
    """The script runs without complaint; what it reads out under the pointer is what the table says."""
    run = load(write_run(tmp_path / "run", make_recipe()))
    probe = """
        <script>
        const svg = document.querySelector("#test-top1 svg"), box = svg.getBoundingClientRect();
        svg.dispatchEvent(new PointerEvent("pointermove", {clientX: box.right, clientY: box.top}));
        document.documentElement.dataset.tip = tip.textContent;
        document.documentElement.dataset.copied = separated(document.querySelector("table"));
        </script></body>"""
    path = tmp_path / "page.html"
    path.write_text(page([run]).replace("</body>", probe))
    dom, log = browse(path)
    assert "CONSOLE" not in log, log
    assert 'data-ready="true"' in dom
    assert set(re.findall(r'<figure id="([^"]+)"', dom)) == FIGURES
    tip = re.search(r'data-tip="([^"]*)"', dom)
    copied = re.search(r'data-copied="([^"]*)"', dom)
    assert tip is not None
    assert copied is not None
    results = run.results()
    shown = sorted(((f"{100 * v['top1']:.2f}", name) for name, v in results.items()), reverse=True)
    assert tip[1].split("\n") == ["epoch 8", *(f"{value}  {name}" for value, name in shown)]
    assert copied[1].split("\n")[0] == "student\tloss\ttop-1 %\ttop-5 %"


def test_a_damaged_record_is_shown_or_refused(tmp_path: Path) -> None:
    cause = StudentFailed("x", student="big", step=1).to_dict()
    recipe, scores = make_recipe(), {"loss": 1.0, "top1": 0.5, "top5": 1.0}
    uri = write_run(
        tmp_path / "run",
        recipe,
        iter(()),
        cause=cause,
        failures={"run": "r", "causes": [cause]},
        absences=[{"student": "big", "since": 1, "until": 2, "state_of": 1}],
        spares=[{"student": "big", "at": "2026-11-30T10:00:00+00:00", "host": "10.0.0.1"}],
        results={"big": scores},
        classes=4,
        data={"train": "0" * 64},
    )
    whole = json.loads(Folder(uri).read("run.json"))

    @given(content=damaged(whole))
    @settings(max_examples=150)
    def check(content: bytes) -> None:
        Folder(uri).write("run.json", content)
        try:
            text = page([load(uri)])
            text.encode()
        except RunFolderError as error:
            text = str(error)
        assert text.startswith("<!") or "\n" not in text

    check()

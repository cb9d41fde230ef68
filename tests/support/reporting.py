"""Made-up runs for the tests of the report, written as a real run writes them."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from kdcl_dist.config.recipe import Recipe
from kdcl_dist.config.recipe_file import dump_recipe, parse_recipe
from kdcl_dist.report.run_data import RunData, aggregate
from kdcl_dist.run.metrics import ENSEMBLE, SCHEMA, MetricsTable
from kdcl_dist.run.record import update_record
from kdcl_dist.run.storage import Folder

TARGETS = ("naive", "linear", "min_logit", "general", "mean")
STEPS = 4
Row = tuple[str, int, int, str, Mapping[str, float]]


def make_recipe(*overrides: str) -> Recipe:
    """A recipe of two students; nothing of it is opened."""
    text = """
        {name: made, epochs: 8, data: {train: train.arrow, test: test.arrow, holdout_per_class: 2},
         students: [{name: big, model: cnn_medium}, {name: small, model: cnn_small}]}
    """
    return parse_recipe(text, overrides)


def rows(recipe: Recipe, epochs: int | None = None, analysis: bool = True) -> Iterator[Row]:
    """Everything that a run records, as (student, epoch, step, split, values)."""
    rng = np.random.default_rng(recipe.seed)
    for epoch in range(recipe.epochs if epochs is None else epochs):
        for step in range(epoch * STEPS, (epoch + 1) * STEPS):
            for name in recipe.names:
                yield name, epoch, step, "train", _train(rng, epoch)
            yield ENSEMBLE, epoch, step, "train", {"loss": 1.0, "top1": 0.5, "ensemble_s": 0.002}
            if analysis and step % 2 == 0:
                for name in recipe.names:
                    yield name, epoch, step, "analysis", _student(rng, name, recipe.names)
                names = (f"{target}_{what}" for target in TARGETS for what in ("loss", "entropy", "wrong"))
                yield ENSEMBLE, epoch, step, "analysis", {name: rng.random() for name in names}
        for name in recipe.names:
            yield name, epoch, step, "holdout", {"weight": 1 / len(recipe.names)}
        for name in (*recipe.names, ENSEMBLE):
            top1 = 0.5 + 0.4 * epoch / recipe.epochs + 0.05 * rng.random()
            yield name, epoch, step, "test", {"loss": 3 * (1 - top1), "top1": top1, "top5": 0.99}


def _train(rng: np.random.Generator, epoch: int) -> dict[str, float]:
    task, distillation = 2.0 / (epoch + 1) + 0.1 * rng.random(), 0.5 + 0.1 * rng.random()
    times = {
        f"{phase}_s": 0.01 * rng.random() for phase in ("data", "forward", "wait", "exchange", "backward")
    }
    losses = {"loss": task + distillation, "task_loss": task, "distillation_loss": distillation}
    return losses | {"lr": 0.1 / (epoch + 1)} | times


def _student(rng: np.random.Generator, name: str, names: list[str]) -> dict[str, float]:
    shares = {"win_share": 0.5, "linear_weight": 0.5, "error": 0.2 * rng.random()}
    gradients = {"gradient_cosine": rng.uniform(-1, 1), "gradient_ratio": rng.random() + 0.1}
    return shares | gradients | {f"disagreement/{other}": rng.random() for other in names if other != name}


def write_run(path: Path, recipe: Recipe, found: Iterator[Row] | None = None, **record: object) -> str:
    """Write a run folder through the table; `record` goes into run.json."""
    folder = Folder(str(path))
    folder.write("recipe.yaml", dump_recipe(recipe).encode())
    table, current = MetricsTable(folder), 0
    wrote = False
    for student, epoch, step, split, values in rows(recipe) if found is None else found:
        if epoch != current:
            table.end_epoch(current)
        table.add(student, epoch, step, split, values)
        current, wrote = epoch, True
    if wrote:
        table.end_epoch(current)
    table.flush(10)
    placement = {
        name: {"host": "10.0.0.1", "pid": 7, "device": "cpu", "parameters": 1234} for name in recipe.names
    }
    defaults = {"state": "finished", "versions": {"torch": "2.6"}, "placement": placement}
    update_record(folder, **(defaults | record))
    return folder.uri


def in_memory(recipe: Recipe, found: Iterator[Row] | None = None) -> RunData:
    """The same without a folder."""
    columns: dict[str, list[object]] = {name: [] for name in SCHEMA.names}
    for student, epoch, step, split, values in rows(recipe) if found is None else found:
        for name, value in values.items():
            for column, item in zip(
                columns.values(), (student, epoch, step, split, name, value), strict=True
            ):
                column.append(item)
    curves, not_finite = aggregate(pa.table(columns, schema=SCHEMA))
    return RunData(f"/runs/{recipe.name}-{recipe.seed}", recipe, {"state": "finished"}, curves, not_finite)


def browse(page: Path) -> tuple[str, str]:
    """A page's DOM after its script ran in a headless browser, and what the browser logged."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    browser = next((found for name in names if (found := shutil.which(name))), None)
    if browser is None:
        pytest.skip(f"no browser: none of {', '.join(names)} is installed")
    command = [browser, "--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1280,900"]
    command += ["--enable-logging=stderr", "--v=0", "--virtual-time-budget=3000", "--dump-dom"]
    command += [f"--user-data-dir={page.parent / 'profile'}", page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout, done.stderr

"""Stored logits as a member of the cohort: the weights are those of the reference, and of the live member."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from cohorts import Cohort, Inject, MakeRecipe, assert_same, weights
from equality import VIEWS, check
from stored_files import write_logits

from kdcl_dist import models
from kdcl_dist.cli import kdcl
from kdcl_dist.data.stored_logits import StoredLogits
from kdcl_dist.evaluation import evaluate
from kdcl_dist.launch import local
from kdcl_dist.run.metrics import read_metrics
from kdcl_dist.run.record import read_record
from kdcl_dist.run.run import Run

CASES = {
    "linear, two coordinators": ["coordinators=2"],
    "general, in parts": [
        "distillation.method=general",
        "data.holdout_per_class=3",
        "data.val_fraction=0.1",
        "epochs=3",
        "accumulate=2",
    ],
    "dml": ["distillation={method: dml, wire_precision: fp16}"],
    "mean, in windows": ["distillation={method: mean, window: 4}", "batch_size=7"],
    "own samples": [
        "distillation={method: mean, window: epoch}",
        "students.a.data={share: 0.6}",
        "students.b.data={share: 0.5}",
        "batch_size=8",
    ],
    "teachers, in windows": ["distillation={method: teacher, teacher: {t: 1, u: 3}, window: 4}"],
}

LEARNERS = "{name: a, model: cnn_small}, {name: b, model: mlp, optimizer: {lr: 0.05}}"


@pytest.mark.parametrize("case", CASES)
def test_stopped_and_resumed_it_equals_the_reference(
    case: str, data: dict[str, str], make_recipe: MakeRecipe, make_run: Callable[..., Run], tmp_path: Path
) -> None:
    t = write_logits(tmp_path / "t.arrow", data["train"], 2)
    u = write_logits(tmp_path / "u.arrow", data["train"], 0, top_k=2)
    stored = f"{{name: t, logits: '{t}'}}, {{name: u, logits: '{u}'}}"
    recipe, asked = make_recipe(f"students=[{LEARNERS}, {stored}]", *CASES[case]), itertools.count()
    assert not Cohort(make_run(recipe, "r")).train(stop=lambda: next(asked) + 1 >= 4).errors
    run = make_run(recipe, "r", resume=True)
    assert not Cohort(run).train().errors
    check(run)
    parts = {path.stem for path in Path(f"{run.folder.local}/checkpoints").rglob("*.pt")}
    assert parts - {f"_bank-{number:05d}" for number in range(2)} == {"a", "b", "coordinator"}
    assert read_record(run.folder)["stored"] == {
        "t": StoredLogits(t).fingerprint,
        "u": StoredLogits(u).fingerprint,
    }
    splits = {row["split"] for row in read_metrics(run.folder).to_pylist() if row["student"] == "t"}
    assert splits - {"analysis", "holdout"} == {"train"} | ({"val"} if recipe.data.has_val else set())


def test_it_equals_the_live_frozen_member_on_the_same_views(
    make_recipe: MakeRecipe, make_run: Callable[..., Run], inject: Inject, tmp_path: Path
) -> None:
    """A file that `kdcl logits` makes of one run teaches in another, in which a student dies."""
    torch.manual_seed(5)
    torch.save(models.build("cnn_small", 4, 1).state_dict(), tmp_path / "t.pt")
    frozen = f"{{name: t, model: cnn_small, weights: '{tmp_path / 't.pt'}', frozen: true}}"
    views = [VIEWS, "data.views=2", "distillation.invariant=false", "epochs=3", "failure.max_failures=1"]
    live = make_run(make_recipe(f"students=[{LEARNERS}, {frozen}]", *views))
    assert local.launch(live, lambda event: None, threading.Event())
    file, recipe = tmp_path / "teacher.arrow", tmp_path / "recipe.yaml"
    stored = make_recipe(f"students=[{LEARNERS}, {{name: t, logits: '{file}'}}]", *views)
    recipe.write_text(str(stored))
    arguments = ["logits", live.folder.uri, "--student", "t", "--recipe", str(recipe), "--out", str(file)]
    told = CliRunner().invoke(kdcl, arguments)
    assert told.exit_code == 0, told.output
    assert "60 samples, 2 training views and the test view, 180 rows of 4 classes in float32" in told.output
    run = make_run(stored)
    met = inject("b", "forward", 4, "kill")
    assert local.launch(run, lambda event: None, threading.Event())
    assert met.exists()
    step = max(int(path.name[5:]) for path in Path(f"{run.folder.local}/checkpoints").iterdir())
    for name in ("a", "b"):
        assert_same(weights(run.folder, step, name), weights(live.folder, step, name))
    curves = [
        {
            (r["step"], r["name"]): r["value"]
            for r in read_metrics(each.folder).to_pylist()
            if r["student"] == "t"
        }
        for each in (live, run)
    ]
    assert {key: curves[0][key] for key in curves[1]} == curves[1]
    assert set(evaluate(run.folder.uri, device="cpu", warn=print).results) == {"a", "b", "ensemble"}

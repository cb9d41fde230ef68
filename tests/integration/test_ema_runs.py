"""A run with averages of weights: they are tested, kept, evaluated and exported beside the weights."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from click.testing import CliRunner
from cohorts import Cohort, MakeRecipe, assert_same, weights

from kdcl_dist.cli import kdcl
from kdcl_dist.data.dataset import ArrowDataset
from kdcl_dist.evaluation import evaluate
from kdcl_dist.models import build
from kdcl_dist.run.metrics import read_metrics
from kdcl_dist.run.record import read_record
from kdcl_dist.run.run import Run

NAMES = ["a", "b", "ensemble", "a/ema", "ensemble/ema"]


@pytest.fixture
def trained(make_recipe: MakeRecipe, make_run: Callable[..., Run]) -> Run:
    """Student a has two replicas with running statistics of their own; stopped once and resumed."""
    recipe = make_recipe("students.a.ema={decay: 0.5}", "students.a.replicas=2", "students.a.epochs=1")
    asked = itertools.count()
    assert not Cohort(make_run(recipe, "r")).train(stop=lambda: next(asked) + 1 >= 2).errors
    run = make_run(recipe, "r", resume=True)
    assert not Cohort(run).train().errors
    return run


def logits(run: Run, name: str, *entry: str) -> torch.Tensor:
    """Of a student on the test samples, without the package's own loading and testing."""
    net = build(run.recipe.students[run.recipe.names.index(name)].model, 4, 1)
    net.load_state_dict(weights(run.folder, 6, name, *entry))
    data = ArrowDataset(run.recipe.data.test)
    x = torch.stack([data.image(i) for i in range(len(data))]).float() / 255
    with torch.no_grad():
        found: torch.Tensor = net.eval()((x - data.mean[0]) / data.std[0])
    return found


def test_it_is_tested_kept_evaluated_and_exported(trained: Run, tmp_path: Path) -> None:
    results = read_record(trained.folder)["results"]
    assert list(results) == NAMES
    averaged, other = logits(trained, "a", "ema"), logits(trained, "b")
    y = torch.from_numpy(ArrowDataset(trained.recipe.data.test).labels)
    both = torch.stack([averaged, other]).softmax(dim=2).mean(dim=0)
    assert results["a/ema"]["loss"] == pytest.approx(float(F.cross_entropy(averaged, y)), rel=1e-5)
    assert results["ensemble/ema"]["loss"] == pytest.approx(float(F.nll_loss(both.log(), y)), rel=1e-5)
    assert results["a/ema"] != results["a"]

    tested = [row["student"] for row in read_metrics(trained.folder).to_pylist() if row["split"] == "test"]
    assert [tested.count(name) for name in NAMES] == [6] * 5  # loss, top1, top5 of two epochs
    assert_same(weights(trained.folder, 3, "a", "ema"), weights(trained.folder, 6, "a", "ema"))

    found = evaluate(trained.folder.uri, device="cpu", warn=print)
    for name in NAMES:
        assert found.results[name] == pytest.approx(results[name]), name
    shown = CliRunner().invoke(kdcl, ["evaluate", trained.folder.uri, "--json"])
    assert list(json.loads(shown.output)["results"]) == NAMES
    page = tmp_path / "run.html"
    assert CliRunner().invoke(kdcl, ["report", trained.folder.uri, "--out", str(page)]).exit_code == 0
    assert page.read_text().count("ensemble/ema") > 1

    made = tmp_path / "made"
    arguments = ["export", trained.folder.uri, "--ema", "--to", str(made), "--student"]
    exported = CliRunner().invoke(kdcl, [*arguments, "a"])
    assert exported.exit_code == 0, exported.output
    state = torch.load(made / "model.pt", weights_only=True)
    assert_same(state, weights(trained.folder, 6, "a", "ema"))
    card = (made / "README.md").read_text()
    assert "# a/ema\n" in card
    assert f"| **a/ema** | cnn_small | {100 * results['a/ema']['top1']:.2f}" in card
    refused = CliRunner().invoke(kdcl, [*arguments, "b"])
    assert (refused.exit_code, refused.output.count("\n")) == (2, 1)
    assert "--ema: student 'b' has no averaged weights" in refused.output

"""Testing a trained run: alone, together, and under noise."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from click.testing import CliRunner
from cohorts import Cohort, recipe_text, weights, write_images

from kdcl_dist.cli import kdcl
from kdcl_dist.cli.evaluate import Levels
from kdcl_dist.config.recipe_file import parse_recipe
from kdcl_dist.data.dataset import ArrowDataset
from kdcl_dist.errors import StorageError
from kdcl_dist.evaluation import evaluate, evaluate_under_noise
from kdcl_dist.models import build
from kdcl_dist.run.prepare import prepare
from kdcl_dist.run.record import read_record
from kdcl_dist.run.run import Run
from kdcl_dist.run.storage import Folder
from kdcl_dist.utils.seeding import Purpose, derive


@pytest.fixture(scope="module")
def trained(data: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Run:
    recipe, folder = parse_recipe(recipe_text(data), ["epochs=1"]), tmp_path_factory.mktemp("runs")
    run = prepare(recipe, str(folder), "run", resume=False, warn=print)
    assert not Cohort(run).train().errors
    return run


def direct(run: Run, deviation: float, repeat: int) -> tuple[float, float]:
    """Loss and top-1 of student a, from its file, without the package's own loading and testing."""
    net = build("cnn_small", 4, 1)
    net.load_state_dict(weights(run.folder, 3, "a"))
    data = ArrowDataset(run.recipe.data.test)
    x = torch.stack([data.image(i) for i in range(len(data))]).float() / 255
    if deviation:
        parts = []
        for number, batch in enumerate(x.split(run.recipe.batch_size)):
            seed = derive(run.recipe.seed, Purpose.TEST_NOISE, repeat, number)
            parts.append(torch.randn(batch.shape, generator=torch.Generator().manual_seed(seed)))
        x = x + deviation * torch.cat(parts)
    with torch.no_grad():
        logits = net.eval()((x - data.mean[0]) / data.std[0])
    y = torch.from_numpy(data.labels)
    return float(F.cross_entropy(logits, y)), float((logits.argmax(dim=1) == y).float().mean())


def test_it_equals_the_runs_own_results_and_direct_computation(trained: Run) -> None:
    found = evaluate(trained.folder.uri, device="cpu", warn=print)
    assert found.results == read_record(trained.folder)["results"]
    assert (found.results["a"]["loss"], found.results["a"]["top1"]) == pytest.approx(direct(trained, 0, 0))
    assert (found.step, found.samples) == (3, 22)


def test_noise_is_of_the_deviation_in_pixels_and_repeatable(trained: Run) -> None:
    def run() -> list[tuple[float, int, dict[str, dict[str, float]]]]:
        return list(evaluate_under_noise(trained.folder.uri, [0.0, 0.1], 2, device="cpu", warn=print))

    found = run()
    assert [(deviation, repeat) for deviation, repeat, _ in found] == [(0, 0), (0, 1), (0.1, 0), (0.1, 1)]
    for deviation, repeat, results in found:
        expected = direct(trained, deviation, repeat)
        assert (results["a"]["loss"], results["a"]["top1"]) == pytest.approx(expected, rel=1e-5)
    assert found[2][2] != found[3][2]
    assert run() == found


def test_the_command(trained: Run) -> None:
    assert trained.folder.local is not None
    path = str(trained.folder.local)
    shown = CliRunner().invoke(kdcl, ["evaluate", path, "--noise", "0:0.15:0.05", "--repeats", "2"])
    assert shown.exit_code == 0, shown.output
    rows = list(csv.DictReader((Path(path) / "noise.csv").open()))
    assert len(rows) == 4 * 2 * 3
    means = {
        (d, n): np.mean([float(r["loss"]) for r in rows if (r["deviation"], r["student"]) == (d, n)])
        for d in ("0", "0.05", "0.1", "0.15")
        for n in ("a", "b", "ensemble")
    }
    for value in means.values():
        assert f"{value:.4f}" in shown.output


def test_json_holds_every_class_and_the_tables_show_it(trained: Run) -> None:
    shown = CliRunner().invoke(kdcl, ["evaluate", trained.folder.uri, "--json"])
    assert shown.exit_code == 0, shown.output
    found = json.loads(shown.output)
    assert (found["samples"], len(found["classes"])) == (22, 4)
    labels = ArrowDataset(trained.recipe.data.test).labels
    for name in ("a", "b", "ensemble"):
        own = found["results"][name]
        confusion = np.array(own["confusion"])
        assert confusion.sum(axis=1).tolist() == np.bincount(labels, minlength=4).tolist()
        assert np.trace(confusion) / 22 == pytest.approx(own["top1"])
        shares = [None if not row.sum() else row[label] / row.sum() for label, row in enumerate(confusion)]
        assert list(own["class_top1"].values()) == shares
    table = CliRunner().invoke(kdcl, ["evaluate", trained.folder.uri, "--per-class"]).output
    for name in found["classes"]:
        assert name in table
    assert f"{100 * found['results']['a']['calibration_error']:.2f}" in table
    assert "most frequent mistakes" in table


def test_a_student_without_numbers_answers_nothing(trained: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every class counts as likely as the others, and JSON has no NaN."""
    forward = "kdcl_dist.student.student.forward"
    monkeypatch.setattr(forward, lambda model, x: torch.full((len(x), 4), torch.nan))
    found = evaluate(trained.folder.uri, device="cpu", warn=print).results["a"]
    labels = ArrowDataset(trained.recipe.data.test).labels
    assert found["loss"] == pytest.approx(np.log(4))
    assert found["top1"] == pytest.approx((labels == 0).mean())
    far = torch.tensor([3e38, -3e38, 0, 0])
    monkeypatch.setattr(forward, lambda model, x: far.expand(len(x), 4))
    shown = CliRunner().invoke(kdcl, ["evaluate", trained.folder.uri, "--json"])
    assert shown.exit_code == 0, shown.output
    json.loads(shown.output, parse_constant=pytest.fail)


def test_noise_is_shown_whatever_its_file_meets(trained: Run, tmp_path: Path) -> None:
    copied = tmp_path / "copied"
    shutil.copytree(trained.folder.local or "", copied)
    (copied / "noise.csv").unlink(missing_ok=True)
    (copied / "noise.csv").mkdir()
    shown = CliRunner().invoke(kdcl, ["evaluate", str(copied), "--noise", "0.1", "--repeats", "1"])
    assert shown.exit_code == 1
    assert "test loss under pixel noise" in shown.stdout
    assert "noise.csv cannot be written" in shown.stderr


def test_noise_is_refused_before_any_test_where_it_could_not_be_kept(
    trained: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(folder: Folder, name: str, data: bytes) -> None:
        raise StorageError("a read-only file system")

    monkeypatch.setattr(Folder, "write", refuse)
    monkeypatch.setattr("kdcl_dist.evaluation.evaluate_under_noise", pytest.fail)
    shown = CliRunner().invoke(kdcl, ["evaluate", trained.folder.uri, "--noise", "0.1"])
    assert shown.exit_code == 2
    assert "noise.csv cannot be written; copy the run" in shown.stderr


def test_another_test_set(trained: Run, data: dict[str, str], tmp_path: Path) -> None:
    found = evaluate(trained.folder.uri, device="cpu", warn=print, data=data["train"])
    assert found.samples == 60
    assert found.results != read_record(trained.folder)["results"]
    other = write_images(tmp_path / "other.arrow", 10, classes=3)
    shown = CliRunner().invoke(kdcl, ["evaluate", trained.folder.uri, "--data", str(other)])
    assert (shown.exit_code, "class" in shown.output) == (2, True), shown.output
    for arguments in (["--data", str(tmp_path / "absent.arrow")], ["--json", "--noise", "0.1"]):
        shown = CliRunner().invoke(kdcl, ["evaluate", trained.folder.uri, *arguments])
        assert shown.exit_code == 2, shown.output
        assert arguments[-1] in shown.output or "--noise" in shown.output


@pytest.mark.parametrize("levels", ["x", "0:1", "0.2:0.1:0.01", "0:1:0", "-1", "0:1:-1", "nan", "0:inf:1"])
def test_mistakes_in_the_levels(trained: Run, levels: str) -> None:
    shown = CliRunner().invoke(kdcl, ["evaluate", trained.folder.uri, f"--noise={levels}"])
    assert shown.exit_code == 2
    assert "--noise" in shown.output


@pytest.mark.parametrize(
    "levels", [("0.1", [0.1]), ("0:0.3:0.1", [0, 0.1, 0.2, 0.3]), ("0:0.25:0.1", [0, 0.1, 0.2])]
)
def test_levels(levels: tuple[str, list[float]]) -> None:

    assert Levels().convert(levels[0], None, None) == levels[1]
    assert len(Levels().convert("0:0.15:0.01", None, None)) == 16

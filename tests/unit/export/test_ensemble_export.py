"""`kdcl export --student ensemble`: one network that answers as `kdcl evaluate` does."""

from __future__ import annotations

import runpy
import shutil
from pathlib import Path

import exporting
import pytest
import torch
from cohorts import SUPPORT, weights
from commands import assert_one_line
from exporting import run

from kdcl_dist import models
from kdcl_dist.cli.export import KINDS
from kdcl_dist.evaluation import Trained, evaluate
from kdcl_dist.export.ensemble import build_ensemble, ensemble_without_package
from kdcl_dist.export.formats import FORMATS
from kdcl_dist.export.prediction import Export
from kdcl_dist.models.ensemble import Ensemble
from kdcl_dist.run.checkpoint import Part, commit, latest, read_part, write_part
from kdcl_dist.run.metrics import ENSEMBLE, Scores
from kdcl_dist.run.run import Run
from kdcl_dist.run.storage import Folder

OWN = ("--allow-imports", "nets")
#: As a run with `general` may have them.
UNEVEN = [0.75, 0.25]


@pytest.fixture(scope="module")
def uneven(trained: Run, tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """The run, with other weights of its students."""
    folder = tmp_path_factory.mktemp("uneven") / "run"
    assert trained.folder.local is not None
    shutil.copytree(trained.folder.local, folder)
    run_folder = Folder(str(folder))
    manifest = latest(run_folder, print)
    assert manifest is not None
    state = read_part(run_folder, manifest, "coordinator")
    state["coordinator"]["weights"] = torch.tensor(UNEVEN, dtype=torch.float64)
    part = write_part(run_folder, manifest.step, "coordinator", state)
    manifest.parts["coordinator"] = Part(part.sha256, part.bytes)
    commit(run_folder, manifest)
    return run_folder


@pytest.fixture(scope="module")
def exports(uneven: Folder, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The ensemble in each format."""
    folder = tmp_path_factory.mktemp("ensembles")
    for kind in KINDS:
        arguments = ("--student", ENSEMBLE, "--format", kind, "--to", folder / kind, *OWN)
        result = run("export", uneven.local, *arguments)
        assert (result.exit_code, result.output) == (0, f"{folder / kind}\n")
    return {kind: folder / kind for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
def test_it_equals_the_row_of_kdcl_evaluate(kind: str, exports: dict[str, Path], uneven: Folder) -> None:
    found = Export.read(exports[kind], ["nets"], "cpu")
    scores, data = Scores(), Trained.load(uneven.uri, warn=print, allow_imports=["nets"]).training_data
    for batch in data.test_batches():
        scores.add_logits(found.logits(batch.inputs), batch.labels)
    expected = evaluate(uneven.uri, device="cpu", warn=print, allow_imports=["nets"]).results
    assert scores.values() == pytest.approx(expected[ENSEMBLE], rel=1e-5)
    assert scores.values()["loss"] != pytest.approx(expected["a"]["loss"], rel=1e-5)


def test_the_networks_keep_their_names(exports: dict[str, Path], uneven: Folder) -> None:
    state = torch.load(exports["state_dict"] / "model.pt", weights_only=True)
    assert state.pop("weights").tolist() == UNEVEN
    for name in ("a", "b"):
        for key, value in weights(uneven, 6, name).items():
            assert torch.equal(state.pop(f"students.{name}.{key}"), value)
    assert not state


def test_without_this_package_it_is_the_same(exports: dict[str, Path], tmp_path: Path) -> None:
    own = (SUPPORT / "nets.py").read_text().replace("from kdcl_dist", "# from kdcl_dist")
    folders = [shutil.copytree(exports[kind], tmp_path / kind) for kind in KINDS]
    for folder in folders:
        (folder / "nets.py").write_text(own)
    images = torch.randn(5, 3, 8, 8)
    found = exporting.in_a_fresh_process(folders, {(3, 8, 8): images}, tmp_path)
    expected = Export.read(exports["torch_export"], device="cpu").logits(images)
    for folder in folders:
        assert torch.allclose(found[str(folder)], expected, atol=1e-5)
        assert torch.allclose(found[str(folder)].exp().sum(dim=1), torch.ones(5))


def test_networks_of_torchvision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    students = {"large": "resnet18", "small": "cnn_small"}
    for file, text in ensemble_without_package(students, 4, 3).items():
        (tmp_path / file).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    found = runpy.run_path(str(tmp_path / "model.py"))["build"]()
    assert type(found.students["large"]).__module__ == "torchvision.models.resnet"
    assert found.state_dict().keys() == build_ensemble(students, 4, 3).state_dict().keys()


def test_what_is_written(exports: dict[str, Path], pictures: Path) -> None:
    for kind, folder in exports.items():
        form = FORMATS[kind]  # type: ignore[index]
        own = set() if form.program else {"model.py", "student_0.py"}
        assert {path.name for path in folder.iterdir()} == {
            "README.md",
            "preprocessing.json",
            form.file,
        } | own
        described = exporting.description(folder)
        assert (described["student"], described["step"]) == (ENSEMBLE, 6)
        assert described["students"] == {"a": "cnn_small", "b": "nets:Dropout"}
        card = (folder / "README.md").read_text()
        assert "a (`cnn_small`, weight 0.75), b (`nets:Dropout`, weight 0.25)" in card
        assert "| **ensemble** |" in card
        shown = run("predict", folder, pictures / "files" / "00.png", "--top", 1, *OWN)
        assert shown.exit_code == 0, shown.output
    assert_one_line(run("predict", exports["state_dict"], pictures / "files"), "students.b", "nets")


def test_students_of_several_steps_have_no_figures(uneven: Folder, tmp_path: Path) -> None:
    shutil.copytree(str(uneven.local), tmp_path / "run")
    folder = Folder(str(tmp_path / "run"))
    manifest = latest(folder, print)
    assert manifest is not None
    manifest.parts["a"] = Part(manifest.parts["a"].sha256, manifest.parts["a"].bytes, 3)
    commit(folder, manifest)
    result = run("export", tmp_path / "run", "--student", ENSEMBLE, "--to", tmp_path / "x", *OWN)
    assert result.exit_code == 0, result.output
    card = (tmp_path / "x" / "README.md").read_text()
    assert "no test results for this checkpoint" in card
    assert "a: epoch 1 of 2, b: epoch 2 of 2;" in card


def test_an_import_must_be_allowed(uneven: Folder, tmp_path: Path) -> None:
    result = run("export", uneven.local, "--student", ENSEMBLE, "--to", tmp_path / "x")
    assert_one_line(result, "students.b.model", "--allow-imports nets")


def test_names_that_a_module_cannot_have() -> None:
    names = ["a.b", "a_b", "keys", "train"]
    network = Ensemble({name: models.build("mlp", 4, 1) for name in names})
    assert list(network.students) == ["a_b", "a_b_", "keys_", "train_"]
    images_BCHW = torch.randn(3, 1, 8, 8)
    mean_BC = torch.stack([each(images_BCHW).softmax(1) for each in network.students.values()]).mean(0)
    assert torch.allclose(network(images_BCHW).exp(), mean_BC)


def test_a_weight_of_0_counts_nothing() -> None:
    networks = {name: models.build("mlp", 4, 1) for name in "ab"}
    images_BCHW = torch.randn(3, 1, 8, 8)
    found_BC = Ensemble(networks, [0.0, 1.0])(images_BCHW)
    assert torch.allclose(found_BC, networks["b"](images_BCHW).log_softmax(1), atol=1e-6)

"""`kdcl logits`: of a run, an export and a `.npy` file; and every mistake in one clear line."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import assert_one_line
from exporting import CLASSES, run

from kdcl_dist.data.loader import batches
from kdcl_dist.data.stored_logits import TEST_VIEW, StoredLogits
from kdcl_dist.evaluation import Trained
from kdcl_dist.export.prediction import Export
from kdcl_dist.run.run import Run


def test_a_student_and_its_export_have_the_same_logits(
    trained: Run, exports: dict[str, Path], pictures: Path, tmp_path: Path
) -> None:
    """Those of an evaluation in the test view, and others in the views of the recipe that the file is for."""
    recipe = tmp_path / "recipe.yaml"
    data = trained.recipe.data.model_copy(update={"views": 2})
    recipe.write_text(str(trained.recipe.model_copy(update={"data": data, "seed": 5})))
    found = {}
    for name, source in (("run", trained.folder.local), ("export", exports["state_dict"])):
        out = tmp_path / f"{name}.arrow"
        student = ("--student", "a") if name == "run" else ()
        result = run("logits", source, *student, "--recipe", recipe, "--out", out, "--allow-imports", "nets")
        assert result.exit_code == 0, result.output
        assert "48 samples, 2 training views and the test view, 144 rows of 4 classes" in result.output
        found[name] = StoredLogits(str(out))
    known = Trained.load(trained.folder.uri, device="cpu", warn=print, allow_imports=["nets"])
    views = known.training_data.test_views(known.training_data.train)
    ids = np.arange(48)
    expected = known.students[0].predict(next(batches(views, [(0, ids)])).inputs)
    rows = {name: [file.rows(ids, view)[0] for view in (TEST_VIEW, 0, 1)] for name, file in found.items()}
    for file in rows.values():
        assert torch.allclose(file[0], expected, rtol=0, atol=1e-5)
    for own, other in zip(*rows.values(), strict=True):
        assert torch.allclose(own, other, rtol=0, atol=1e-5)
    assert not torch.allclose(rows["run"][1], rows["run"][2], atol=1e-2)
    info = found["run"].info
    assert (info.views, info.seed, info.augment) == (2, 5, ({"name": "RandomResizedCrop", "size": 8},))
    assert info.source == f"a of {trained.folder.uri}, epoch 2 of 2"
    assert found["export"].info.network == Export.read(exports["state_dict"]).description.sha256


def test_the_ensemble_in_half_of_the_bytes(trained: Run, pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "t.arrow"
    arguments = ("logits", trained.folder.local, "--data", pictures / "train.arrow", "--out", out)
    more = ("--dtype", "fp16", "--top-k", "2", "--allow-imports", "nets")
    assert run(*arguments, *more).exit_code == 0
    file = StoredLogits(str(out))
    assert (file.info.views, file.info.top_k, file.info.dtype, len(file)) == (0, 2, "float16", 48)
    probabilities = file.rows(np.arange(48), TEST_VIEW)[0].exp()
    assert torch.allclose(probabilities.sum(dim=1), torch.ones(48), atol=0.01)


def test_a_file_of_numpy(pictures: Path, tmp_path: Path) -> None:
    logits = np.random.default_rng(0).normal(size=(48, 4))
    np.save(tmp_path / "t.npy", logits)
    out = tmp_path / "t.arrow"
    assert run("logits", tmp_path / "t.npy", "--data", pictures / "train.arrow", "--out", out).exit_code == 0
    found, _ = StoredLogits(str(out)).rows(np.arange(48), TEST_VIEW)
    assert torch.equal(found, torch.from_numpy(logits).float())


@pytest.mark.parametrize(
    ("array", "text"),
    [
        (np.zeros((47, 4)), "has shape (47, 4), and the data set needs (48, 4)"),
        (np.zeros((48, 4), int), "has int64 of shape (48, 4); logits are floating-point numbers"),
        (np.zeros(48), "has float64 of shape"),
        (np.array([{"a": 1}], object), "no file of numpy.save: "),
        (np.full((48, 4), np.nan), "a logit of sample 0 is no finite number"),
    ],
)
def test_arrays_that_are_no_logits(array: np.ndarray, text: str, pictures: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "t.npy", array, allow_pickle=True)
    out = tmp_path / "t.arrow"
    assert_one_line(run("logits", tmp_path / "t.npy", "--data", pictures / "train.arrow", "--out", out), text)
    assert not out.exists()


def test_files_that_are_no_arrays(pictures: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.npy")
    np.savez(tmp_path / "archive.npz", logits=np.zeros((48, 4)))
    (tmp_path / "archive.npz").rename(tmp_path / "archive.npy")
    kind = f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({2**70}, {2**70})}}\n".encode()
    (tmp_path / "huge.npy").write_bytes(b"\x93NUMPY\x01\x00" + len(kind).to_bytes(2, "little") + kind)
    for number, header in enumerate(
        (b"'", b"{1: 2, 'a': 3}", b"{'descr': (), %s", b"{'descr': '<,4', %s", b"-" * 9000)
    ):
        kind = header.replace(b"%s", b"'fortran_order': False, 'shape': (4, 4)}") + b"\n"
        damaged = b"\x93NUMPY\x01\x00" + len(kind).to_bytes(2, "little") + kind
        (tmp_path / f"damaged{number}.npy").write_bytes(damaged + bytes(64))
    for name in ("fifo", "archive", "huge", *(f"damaged{number}" for number in range(5))):
        arguments = ("--data", pictures / "train.arrow", "--out", tmp_path / "t.arrow")
        assert_one_line(run("logits", tmp_path / f"{name}.npy", *arguments), "no file of numpy.save: ")


def test_names_that_no_file_system_has(pictures: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "t.npy", np.zeros((48, 4)))
    data, long = ("--data", pictures / "train.arrow"), tmp_path / ("x" * 300)
    for source, out, text in (
        (tmp_path / "t.npy", long, "File name too long"),
        (long, tmp_path / "t.arrow", "File name too long"),
        (tmp_path / "t.npy", tmp_path / "\udcff.arrow", "cannot be written: UnicodeEncodeError"),
    ):
        assert_one_line(run("logits", source, *data, "--out", out), text)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--data", "{train}", "--student", "a"], "--student and --epoch are for run folders"),
        ([], "give one of --data and --recipe"),
        (["--data", "{train}", "--recipe", "{recipe}"], "give one of --data and --recipe"),
        (["--data", "{train}", "--views", "2"], "--views 2: training views need a network, and --recipe"),
        (["--data", "{train}", "--top-k", "4"], "--top-k 4: there are 4 classes"),
        (["--data", "nowhere.arrow"], "nowhere.arrow: no such file"),
        (["--data", "{train}", "--out", "{train}"], "exists already"),
    ],
)
def test_mistakes_are_one_line(
    arguments: list[str], text: str, trained: Run, pictures: Path, tmp_path: Path
) -> None:
    names = {"train": pictures / "train.arrow", "recipe": f"{trained.folder.local}/recipe.yaml"}
    np.save(tmp_path / "t.npy", np.zeros((48, 4)))
    given = [each.format(**names) for each in arguments]
    assert_one_line(run("logits", tmp_path / "t.npy", "--out", tmp_path / "t.arrow", *given), text)


def test_other_classes_are_refused(trained: Run, pictures: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    data = trained.recipe.data.model_copy(update={"classes": list(reversed(CLASSES))})
    recipe.write_text(str(trained.recipe.model_copy(update={"data": data})))
    arguments = ("logits", trained.folder.local, "--recipe", recipe, "--out", tmp_path / "t.arrow")
    assert_one_line(run(*arguments, "--allow-imports", "nets"), "the same names in the same order are needed")

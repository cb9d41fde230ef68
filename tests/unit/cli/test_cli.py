"""The command line: results, exit codes, and every mistake in one clear line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cohorts import ROOT, MakeRecipe
from commands import assert_one_line, run, train

from kdcl_dist import models
from kdcl_dist.config.recipe_file import dump_recipe


@pytest.fixture
def recipe(make_recipe: MakeRecipe, tmp_path: Path) -> str:
    path = tmp_path / "recipe.yaml"
    path.write_text(dump_recipe(make_recipe()))
    return str(path)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("epohcs=3", ["epohcs", "unknown"]),
        ("batch_size=six", ["batch_size", "'six'"]),
        ("distillation.temperature=-2.0", ["temperature", "-2.0"]),
        ("students=[]", ["students"]),
        ("students.b.name=a", ["differ"]),
        ("data.train=none.arrow", ["data.train: none.arrow", "no such file"]),
        ("data.test=README.md", ["data.test: README.md", "not an Arrow"]),
        ("distillation.window=0", ["distillation.window: Input", "greater than 0 or 'epoch' (got 0)"]),
        ("batch_size=1000", ["batch_size is 1000", "60"]),
        ("data.holdout_per_class=15", ["holdout_per_class is 15", "15"]),
        ("students.a.model=cnn_smal", ["cnn_smal", "did you mean 'cnn_small'"]),
        ("students.a.model=no_module:net", ["no_module", "No module"]),
        ("students.a.model=nets:none", ["no attribute 'none'"]),
        ("students.a.model=nets:broken", ["no such weights"]),
        ("students.a.model=nets:number", ["int", "not a torch.nn.Module"]),
        ("students.a.model=nets:WrongClasses", ["(2, 5)", "4 classes"]),
        ("students.a.model=nets:Tuples", ["nets:Tuples", "logits of shape"]),
        ("students.a.model=nets:RaisesInTraining", ["cannot take a training step", "not in training"]),
        ("students.a.model=nets:Detached", ["cannot take a training step", "require grad"]),
        ("students.a.weights=none.pt", ["none.pt", "cannot be read"]),
        ("students.a.weights=README.md", ["README.md", "torch.save"]),
        ("students.a.weights={weights}", ["do not fit Cnn", "size mismatch"]),
        ("students.b.weights={weights}", ["do not fit Mlp", "it is without layers.2.weight and ", "more"]),
        ("students.a.resources.gpu=1", ["students.a.resources.gpu", "0 GPUs"]),
        ("data.augment=[{name: Blur}]", ["data.augment: transform 0", "Blur", "transforms.v2"]),
        ("students.a.model=vgg16", ["student 'a'", "fails on images of shape (2, 1, 8, 8)"]),
        ("students.b.augment=[{name: Blur}]", ["students.b.augment: transform 0"]),
        ("data.test_view=[{name: Blur}]", ["data.test_view: transform 0"]),
        ("data.augment=[{name: RandomCrop, size: 20}]", ["transform fails", "sample"]),
        ("data.augment=[{name: FiveCrop, size: 8}]", ["give a tuple"]),
        ("data.augment=[{name: ToPILImage}]", ["give a Image"]),
        ("data.augment=[{name: RGB}]", ["(3, 8, 8)", "1 channels"]),
        ("data.augment=[{name: 'nets:not_a_number'}]", ["NaN"]),
        (
            "data.train=nets:FailingImages",
            ["data.train", "image(0) fails", "disk gone"],
        ),
        ("data.train={truncated}", ["truncated.arrow", "truncated"]),
        ("name=2020-13-45", ["differ", "start"]),
        ("epochs=1:30", ["epochs", "'1:30'"]),
        ("epochs=!!int abc", ["not valid YAML"]),
        ("students.\N{SUPERSCRIPT TWO}.name=x", ["no item"]),
    ],
)
def test_mistakes_in_a_recipe(
    recipe: str, tmp_path: Path, data: dict[str, str], override: str, words: list[str]
) -> None:
    torch.save(torch.nn.ModuleDict({"layers": torch.nn.Linear(2, 2)}).state_dict(), tmp_path / "weights.pt")
    torch.save(models.build("cnn_small", 7, 1).state_dict(), tmp_path / "other.pt")
    (tmp_path / "truncated.arrow").write_bytes(Path(data["train"]).read_bytes()[:-200])
    weights = "other.pt" if "students.a" in override else "weights.pt"
    override = override.replace("{weights}", str(tmp_path / weights))
    override = override.replace("{truncated}", str(tmp_path / "truncated.arrow"))
    result = train(recipe, tmp_path, "--set", override)
    if override.startswith("name="):  # a date of YAML 1.1 is a name like any other
        assert result.exit_code == 0, result.output
        return
    assert_one_line(result, *words)
    assert not list((tmp_path / "runs").glob("*/"))  # the run's name is free again


@pytest.mark.parametrize("name", [".", "..", "../up", "a/b", "/abs", " ", "a b", "", "x" * 200, "a\nb"])
def test_mistakes_in_a_name(recipe: str, tmp_path: Path, name: str) -> None:
    assert_one_line(train(recipe, tmp_path, "--name", name), "--name", "letters")


def test_mistakes_about_what_is_evaluated(recipe: str, tmp_path: Path) -> None:
    for path in (recipe, "/dev/null", str(tmp_path / "none"), "a\0b"):
        result = run("evaluate", path)
        assert result.exit_code == 2, result.output
        assert result.output.startswith("kdcl: error: ")
        assert result.output.count("\n") == 1
    assert train(recipe, tmp_path, "--name", "one", "--set", "epochs=1").exit_code == 0
    if not torch.cuda.is_available():
        assert_one_line(run("evaluate", str(tmp_path / "runs/one"), "--device", "cuda"), "no GPU")
    (tmp_path / "runs/one/run.json").write_text("")
    again = train(recipe, tmp_path, "--name", "one", "--resume", "--set", "epochs=1")
    assert_one_line(again, "run.json is damaged")


def test_mistakes_about_the_run_folder(recipe: str, tmp_path: Path) -> None:
    taken = tmp_path / "runs"
    taken.write_text("a file where the folder should be")
    for more, words in (((), "cannot be written"), (("--resume",), "nothing to resume")):
        result = train(recipe, tmp_path, *more)
        assert (result.exit_code, words in result.output) == (2, True), result.output
    taken.unlink()
    for more in ((), ("--name", "none")):
        result = train(recipe, tmp_path, "--resume", *more)
        assert result.exit_code == 2
        assert "nothing to resume" in result.output
    result = run("evaluate", str(tmp_path / "none"))
    assert result.exit_code == 2
    assert "recipe.yaml" in result.output


def test_labels_out_of_range(recipe: str, tmp_path: Path) -> None:
    from arrow_files import INFO, write_arrow

    path = write_arrow(tmp_path / "bad.arrow", INFO.schema(), [0, 5], [b"abcd"] * 2)
    result = train(recipe, tmp_path, "--set", f"data.train={path}")
    assert result.exit_code == 2
    assert "row 1 is 5" in result.output


def test_data_and_models(tmp_path: Path) -> None:
    assert run("data", "import", "digits", str(tmp_path)).exit_code == 0
    shown = run("data", "inspect", str(tmp_path / "digits-test.arrow"))
    assert shown.exit_code == 0
    assert "CC BY 4.0" in shown.output
    missing = run("data", "inspect", str(tmp_path / "none"))
    assert missing.exit_code == 2
    assert "no such file" in missing.output
    assert "wrn_16_2" in run("models").output.split()
    assert run("train").exit_code == 2
    assert run("--version").output.startswith("kdcl")


def test_the_module_is_the_command(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "kdcl_dist", "train", str(tmp_path / "none.yaml")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "none.yaml" in done.stderr


def test_help_needs_no_torch() -> None:
    code = "import sys; from kdcl_dist.cli import kdcl; kdcl(['-h'], standalone_mode=False); "
    code += "print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.splitlines()[-1] == "False"

"""The command line: results, exit codes, and every mistake in one clear line."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import ray
import torch
import yaml
from click.testing import CliRunner, Result
from cohorts import ROOT, MakeRecipe
from commands import assert_one_line

from kdcl_dist import models
from kdcl_dist.cli import kdcl
from kdcl_dist.config.recipe_file import dump_recipe, load_recipe
from kdcl_dist.run.metrics import SCHEMA, read_metrics
from kdcl_dist.run.record import read_record
from kdcl_dist.run.storage import Folder


@pytest.fixture
def recipe(make_recipe: MakeRecipe, tmp_path: Path) -> str:
    path = tmp_path / "recipe.yaml"
    path.write_text(dump_recipe(make_recipe()))
    return str(path)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(kdcl, list(arguments))


def train(recipe: str, tmp_path: Path, *more: str, launcher: str = "local") -> Result:
    return run("train", recipe, "--launcher", launcher, "--storage", str(tmp_path / "runs"), *more)


def test_a_whole_run(recipe: str, tmp_path: Path) -> None:
    result = train(recipe, tmp_path, "--name", "one", "--set", "students.a.optimizer.lr=0.05")
    assert result.exit_code == 0, result.output
    assert "epoch 2 of 2" in result.output
    folder = Folder(str(tmp_path / "runs" / "one"))
    assert load_recipe(tmp_path / "runs/one/recipe.yaml").students[0].optimizer.lr == 0.05
    assert "# torch " in (tmp_path / "runs/one/recipe.yaml").read_text()
    record = read_record(folder)
    assert record["state"] == "finished"
    assert record["placement"].keys() == {"a", "b"}
    assert record["versions"].keys() >= {"kdcl_dist", "torch", "python"}
    check_metrics(folder, record["results"])
    check_tensorboard(tmp_path / "runs" / "one" / "tensorboard")

    evaluated = run("evaluate", str(tmp_path / "runs" / "one"))
    assert evaluated.exit_code == 0
    for name in ("a", "b", "ensemble"):
        assert f"{100 * record['results'][name]['top1']:.2f}" in evaluated.output
        assert f"{record['results'][name]['loss']:.4f}" in evaluated.output

    again = train(recipe, tmp_path, "--name", "one", "--resume", "--set", "students.a.optimizer.lr=0.05")
    assert again.exit_code == 0
    assert "finished already" in again.output


def check_metrics(folder: Folder, results: dict) -> None:
    table = read_metrics(folder)
    assert table.schema.equals(SCHEMA)
    frame = table.to_pandas()
    train = frame[(frame.split == "train") & (frame.student == "a")]
    values = {name: rows.value.to_numpy() for name, rows in train.groupby("name")}
    assert values.keys() >= {
        "loss",
        "task_loss",
        "distillation_loss",
        "lr",
        "top1",
        "top5",
        "data_s",
        "forward_s",
    }
    assert values.keys() >= {"wait_s", "exchange_s", "backward_s", "step_s"}
    assert all(len(rows) == 6 for rows in values.values())
    assert np.allclose(values["loss"], values["task_loss"] + values["distillation_loss"], rtol=1e-5)
    parts = sum(values[name] for name in ("data_s", "forward_s", "wait_s", "exchange_s", "backward_s"))
    assert np.allclose(parts, values["step_s"], atol=1e-3)
    test = frame[(frame.split == "test") & (frame.epoch == 1)]
    for _, row in test.iterrows():
        assert results[row.student][row["name"]] == row.value


def check_tensorboard(folder: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for name in ("a", "b", "ensemble"):
        events = EventAccumulator(str(folder / name))
        events.Reload()
        assert "test/top1" in events.Tags()["scalars"]
        assert [event.step for event in events.Scalars("test/top1")] == [3, 6]


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
        ("students.b.weights={weights}", ["do not fit Mlp", "without layers.2.weight", "more"]),
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
        ("data.train=nets:FailingImages", ["data set fails on sample", "disk gone"]),
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


def test_a_run_can_be_evaluated_from_anywhere_and_without_its_first_weights(
    make_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: dict[str, str]
) -> None:
    first = tmp_path / "first.pt"
    torch.save(models.build("cnn_small", 4, 1).state_dict(), first)
    for part in ("train", "test"):
        (tmp_path / f"{part}.arrow").write_bytes(Path(data[part]).read_bytes())
    monkeypatch.chdir(tmp_path)
    made = make_recipe(
        "data.train=train.arrow", "data.test=test.arrow", "epochs=1", f"students.a.weights={first}"
    )
    (tmp_path / "recipe.yaml").write_text(dump_recipe(made))
    assert train("recipe.yaml", tmp_path, "--name", "one").exit_code == 0
    first.unlink()
    monkeypatch.chdir("/")
    assert run("evaluate", str(tmp_path / "runs" / "one")).exit_code == 0


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


def test_a_failed_run_exits_with_1_and_its_cause(recipe: str, tmp_path: Path) -> None:
    result = train(recipe, tmp_path, "--name", "r", "--set", "students.b.model=nets:Raises")
    assert result.exit_code == 1
    named = "StudentFailed: student 'b', step 3, phase forward, host 127.0.0.1"
    assert f"{named}: ArithmeticError: a user's mistake" in result.output
    cause = read_record(Folder(str(tmp_path / "runs" / "r")))["cause"]
    assert (cause["student"], cause["step"], cause["error"]) == ("b", 3, "StudentFailed")


def test_warnings_about_what_is_hardly_meant(recipe: str, tmp_path: Path) -> None:
    more = [
        "--set",
        "students.0={name: a, model: mlp, seed: 1}",
        "--set",
        "students.1={name: b, model: mlp, seed: 1}",
    ]
    more += ["--set", "students.0.accelerator=T4", "--set", "distillation.window=500"]
    result = train(recipe, tmp_path, *more, "--set", "epochs=1")
    assert result.exit_code == 0, result.output
    assert "start identical" in result.output
    assert "students.a.accelerator: 'T4' is not looked for by launcher 'local'" in result.output
    assert "distillation.window: an epoch has 3 steps, so 500 is as much as 'epoch'" in result.output


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


def test_a_ray_of_another_program_is_left_alone(recipe: str, tmp_path: Path) -> None:
    """It would end with that program, and what is too much for it would wait for ever."""
    code = "import ray; ray.init(num_cpus=1, include_dashboard=False); print('there', flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        while "there" not in other.stdout.readline():
            pass
        command = [sys.executable, "-m", "kdcl_dist", "preflight", recipe, "--storage", str(tmp_path)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=200)
        assert other.poll() is None
        other.communicate("\n")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """A Ray that is connected already, so that each command does not start one."""
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.mark.usefixtures("cluster")
def test_a_mistake_found_in_a_ray_worker(recipe: str, tmp_path: Path) -> None:
    result = train(recipe, tmp_path, "--set", "students.a.model=nets:WrongClasses", launcher="ray")
    assert result.exit_code == 2, result.output
    assert "4 classes" in result.output
    assert "Traceback" not in result.output


@pytest.mark.usefixtures("cluster")
def test_a_killed_ray_worker_is_named(recipe: str, tmp_path: Path) -> None:
    result = train(recipe, tmp_path, "--set", "students.b.model=nets:Killed", "--name", "r", launcher="ray")
    assert result.exit_code == 1, result.output
    assert "student 'b'" in result.output
    assert read_record(Folder(str(tmp_path / "runs" / "r")))["cause"]["student"] == "b"


def test_help_needs_no_torch() -> None:
    code = "import sys; from kdcl_dist.cli import kdcl; kdcl(['-h'], standalone_mode=False); "
    code += "print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.splitlines()[-1] == "False"


def test_precision_and_workers_run_through(recipe: str, tmp_path: Path) -> None:
    more = [
        "students.a.precision=bf16",
        "students.b.precision=fp16",
        "data.loader_workers=1",
        "deterministic=true",
    ]
    settings = [part for item in more for part in ("--set", item)]
    result = train(recipe, tmp_path, *settings, "--name", "r")
    assert result.exit_code == 0, result.output
    assert yaml.safe_load((tmp_path / "runs/r/recipe.yaml").read_text())["students"][0]["precision"] == "bf16"

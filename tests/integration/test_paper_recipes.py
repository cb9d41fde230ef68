"""Every recipe under examples/ trains, and every table of the paper names arms that are valid recipes."""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from click.testing import CliRunner
from cohorts import ROOT
from PIL import Image

from benchmarks.in_turn import InTurn
from kdcl_dist.cli import kdcl
from kdcl_dist.compare.experiment import jobs_of, load_table
from kdcl_dist.config.optim import SGD
from kdcl_dist.config.recipe import Recipe
from kdcl_dist.config.recipe_file import load_recipe
from kdcl_dist.config.schedules import MultiStep
from kdcl_dist.config.student import Student
from kdcl_dist.data.dataset import Info
from kdcl_dist.data.sources.opening import open_dataset
from kdcl_dist.data.views import Transforms
from kdcl_dist.data.writer import write_dataset

EXAMPLES = ROOT / "examples"
FILES = {path: yaml.load(path.read_text(), yaml.CSafeLoader) for path in sorted(EXAMPLES.rglob("*.yaml"))}
RECIPES = [path for path, content in FILES.items() if "students" in content]
TABLES = [path for path, content in FILES.items() if "arms" in content]
ARMS = [(path, arm) for path in TABLES for arm in FILES[path]["arms"]]

#: Training samples of the paper's data sets, by which a table knows the step of a finished run.
SAMPLES = {"data/imagenet/train": 1_281_167, "data/cifar100/train.arrow": 50_000}


def label(value: Any) -> str:
    return str(value.relative_to(EXAMPLES)) if isinstance(value, Path) else value["name"]


def arm_recipe(path: Path, arm: dict[str, Any], *more: str) -> Recipe:
    """The arm's recipe for seed 0."""
    chosen = [item.replace("{seed}", "0") for item in arm.get("set", [])]
    return load_recipe(path.parent / arm["recipe"], [*chosen, *more])


def info(classes: int, encoding: str, shape: tuple[int, int, int] | None, channels: int = 3) -> Info:
    names = tuple(f"class {number}" for number in range(classes))
    return Info(names, encoding, channels, shape, mean=(0.5,) * channels, std=(0.25,) * channels)  # type: ignore[arg-type]


@pytest.fixture(scope="session")
def fashion(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Overrides for data of Fashion-MNIST's format: raw 28x28, grey, 10 classes."""
    folder = tmp_path_factory.mktemp("fashion")
    rng = np.random.default_rng(0)
    for name, count in (("train", 40), ("test", 20)):
        samples = [(number % 10, rng.bytes(28 * 28)) for number in range(count)]
        write_dataset(folder / f"{name}.arrow", samples, info(10, "raw", (1, 28, 28), channels=1))
    small = ["data.train_per_class=3", "batch_size=8"]
    return [f"data.train={folder}/train.arrow", f"data.test={folder}/test.arrow", *small]


@pytest.fixture(scope="session")
def cifar(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Overrides for data of CIFAR-100's format: raw 32x32, 100 classes."""
    folder = tmp_path_factory.mktemp("cifar100")
    rng = np.random.default_rng(0)
    for name, count in (("train", 200), ("test", 20)):
        samples = [(number % 100, rng.bytes(3 * 32 * 32)) for number in range(count)]
        write_dataset(folder / f"{name}.arrow", samples, info(100, "raw", (3, 32, 32)))
    return [f"data.train={folder}/train.arrow", f"data.test={folder}/test.arrow", "batch_size=8"]


@pytest.fixture(scope="session")
def imagenet(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Overrides for data of ImageNet's format: shards of JPEG files of different sizes, some grey."""
    folder = tmp_path_factory.mktemp("imagenet")
    rng = np.random.default_rng(0)
    for part, shards in (("train", 2), ("val", 1)):
        for shard in range(shards):
            samples = [(number, jpeg(rng, grey=number == 1)) for number in range(3)]
            write_dataset(folder / part / f"{shard}.arrow", samples, info(3, "encoded", None))
    return [f"data.train={folder}/train", f"data.test={folder}/val", "batch_size=2"]


def jpeg(rng: np.random.Generator, *, grey: bool) -> bytes:
    height, width = rng.integers(200, 300, 2)
    pixels = rng.integers(0, 256, (height, width) if grey else (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file := io.BytesIO(), "JPEG")
    return file.getvalue()


@pytest.fixture
def data_of(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Overrides that put small data in the place of what a recipe names; the digits stay."""
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(str(ROOT))

    def choose(content: dict[str, Any]) -> list[str]:
        kind = content["data"]["train"].split("/")[1] if content["data"]["train"].startswith("data/") else ""
        named = {"cifar100": "cifar", "imagenet": "imagenet", "fashion": "fashion"}
        small = request.getfixturevalue(named[kind]) if kind else []
        return [*small, "data.loader_workers=0"]

    return choose


def train(recipe: Recipe, steps: int) -> InTurn:
    """A few steps of the whole cohort, which must change every learner and leave finite results."""
    cohort = InTurn(recipe)
    before = [[p.detach().clone() for p in student.model.parameters()] for student in cohort.students]
    for step in range(steps):
        cohort.step(step)
    for student, old in zip(cohort.students, before, strict=True):
        same = [torch.equal(p, q) for p, q in zip(old, student.model.parameters(), strict=True)]
        assert all(same) if student.frozen else not any(same), student.spec.name
    results = cohort.test()
    assert all(np.isfinite(value) for scores in results.values() for value in scores.values())
    return cohort


@pytest.mark.parametrize("path", RECIPES, ids=label)
def test_recipes_train(path: Path, data_of: Any) -> None:
    train(load_recipe(path, data_of(FILES[path])), steps=2)


def test_every_table_is_there() -> None:
    numbers = [2, 3, 4, 5, 6, 7, 9, 10]
    assert {path.stem for path in TABLES if path.parent.name == "digits"} == {f"table{n}" for n in numbers}
    assert {path.stem for path in TABLES if path.parent.name == "paper"} == {
        *(f"table{n}" for n in (*numbers, 8)),
        "table3-top5",
    }


@pytest.mark.parametrize("path", TABLES, ids=label)
def test_tables_are_ready_to_compare(path: Path) -> None:
    table = load_table(path)
    assert table.baseline is not None
    assert len(jobs_of(table, path.parent)) == len(table.seeds) * len(table.arms)


@pytest.mark.parametrize(("path", "arm"), ARMS, ids=label)
def test_arms_are_valid_recipes(path: Path, arm: dict[str, Any]) -> None:
    recipe = arm_recipe(path, arm)
    assert all(50 < figure < 100 for figure in arm.get("published", {}).values())
    Transforms([item.item() for item in recipe.data.test_view])
    for student in recipe.students:
        Transforms(recipe.augment_of(student), (0.5, 0.5, 0.5))
        check_hyper_parameters(recipe, student)
        if student.weights is not None and student.transfer is None:
            check_teacher(path, recipe, student)


def check_hyper_parameters(recipe: Recipe, student: Student) -> None:
    """Those of the paper's section 4."""
    if recipe.data.train not in SAMPLES:
        return
    optimizer, schedule, epochs = student.optimizer, student.schedule, recipe.epochs_of(student)
    assert isinstance(optimizer, SGD)
    assert isinstance(schedule, MultiStep)
    assert (optimizer.momentum, optimizer.nesterov, recipe.distillation.temperature) == (0.9, False, 2.0)
    assert schedule.gamma == 0.1
    if "cifar100" in recipe.data.train:
        assert (recipe.batch_size, optimizer.lr, optimizer.weight_decay) == (128, 0.1, 5e-4)
        assert (epochs, schedule.milestones, schedule.warmup_epochs) == (200, [100, 150], 0)
        return
    assert (recipe.batch_size, optimizer.lr, optimizer.weight_decay) == (2048, 0.8, 1e-4)
    assert (schedule.warmup_epochs, schedule.warmup_lr) == (5, 0.1)
    assert schedule.milestones == [epochs * tenths // 10 for tenths in (3, 6, 9)]
    short = re.search(r"_e(\d+)$", student.name)
    usual = 300 if student.model in {"mobilenet_v2", "mobilenet_v2_x0_5"} else 200
    assert epochs == (int(short[1]) if short else 100 if "x5" in recipe.name else usual)


def check_teacher(path: Path, recipe: Recipe, student: Student) -> None:
    """The file lies where the run that the table's first lines name leaves it."""
    if recipe.data.train_per_class:  # of the ten classes of Fashion-MNIST; the run is another arm's
        samples, run = 10 * recipe.data.train_per_class, "fashion/none-seed0"
    else:
        samples = SAMPLES.get(recipe.data.train) or len(open_dataset(recipe.data.train))
        named = re.search(r"--name (\S+)", path.read_text())
        assert named is not None
        run = named[1]
    step = recipe.epochs * (samples // recipe.batch_size)
    assert student.weights == f"runs/{run}/checkpoints/step-{step:08d}/{student.name}.pt"


def test_classic_distillation_of_the_digits(data_of: Any, tmp_path: Path) -> None:
    path = EXAMPLES / "paper" / "digits" / "table7.yaml"
    vanilla, kd = (
        next(arm for arm in FILES[path]["arms"] if arm["name"] == name) for name in ("vanilla", "kd_mlp")
    )
    first = train(arm_recipe(path, vanilla), steps=2)
    weights = tmp_path / "teacher.pt"
    torch.save(first.students[0].state_dict(), weights)
    cohort = train(arm_recipe(path, kd, f"students.cnn_small.weights={weights}"), steps=2)
    assert [student.frozen for student in cohort.students] == [True, False]


def test_the_command_line_finds_import_strings_below_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    # A console script starts without the working directory among the folders that are searched.
    monkeypatch.setattr(sys, "path", [folder for folder in sys.path if folder not in ("", str(ROOT))])
    for name in [name for name in sys.modules if name.split(".")[0] == "examples"]:
        monkeypatch.delitem(sys.modules, name)
    arguments = ["--launcher", "local", "--storage", str(tmp_path), "--set", "epochs=1"]
    result = CliRunner().invoke(kdcl, ["train", "examples/custom/recipe.yaml", *arguments])
    assert result.exit_code == 0, result.output
    assert " epoch epoch=1/1 " in result.output

"""Recipes: complete defaults, strict checks, overrides, comparison."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import yaml
from cohorts import ROOT

from kdcl_dist.config.differences import differences
from kdcl_dist.config.recipe import Recipe
from kdcl_dist.config.recipe_file import dump_recipe, load_recipe, parse_recipe
from kdcl_dist.errors import RecipeError

MINIMAL = """
data: {train: a.arrow, test: b.arrow}
students:
  - {name: one, model: cnn_small}
  - {name: two, model: mlp, optimizer: {name: adamw, lr: 1e-3}}
"""

LIMITS = ("startup_s", "step_s", "storage_s")


def test_defaults_are_complete_and_survive_writing() -> None:
    recipe = parse_recipe(MINIMAL)
    written = yaml.safe_load(dump_recipe(recipe))
    assert parse_recipe(dump_recipe(recipe)) == recipe
    assert written["distillation"] == {
        "method": "linear",
        "temperature": 2.0,
        "weight": 1.0,
        "loss": {"name": "kl"},
        "invariant": True,
        "window": 1,
        "max_staleness": None,
        "bank": {"folder": None, "top_k": None},
        "record_logits": None,
        "threads": None,
        "logit_noise": 0.0,
        "wire_precision": "fp32",
        "teacher": None,
    }
    assert written["students"][0]["optimizer"] == {
        "name": "sgd",
        "lr": 0.1,
        "momentum": 0.9,
        "nesterov": False,
        "weight_decay": 5e-4,
        "decay_norm_and_bias": True,
        "layer_decay": 1.0,
    }
    assert written["limits"] == {"startup_s": 300.0, "step_s": 120.0, "storage_s": 30.0}
    assert written["checkpoint"] == {
        "every_epochs": 1,
        "keep": 2,
        "in_memory_every_steps": 0,
        "best": None,
    }
    assert written["evaluate"] == {"every_epochs": 1, "on": None}


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.yaml")))
def test_shipped_recipes_load(path: Path) -> None:
    assert isinstance(load_recipe(path), Recipe)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("epohcs=3", ["epohcs", "unknown", "epochs"]),
        ("distillation.temprature=1", ["distillation.temprature", "unknown", "temperature"]),
        ("epochs=two", ["epochs", "'two'"]),
        ("epochs=1.5", ["epochs", "1.5"]),
        ("epochs=0", ["epochs", "0"]),
        ("epochs=true", ["epochs", "True"]),
        ("batch_size=-4", ["batch_size", "-4"]),
        ("coordinators=0", ["coordinators", "0"]),
        ("distillation.temperature=-1", ["distillation.temperature", "-1"]),
        ("distillation.temperature=.nan", ["distillation.temperature", "nan"]),
        ("distillation.weight=-0.1", ["distillation.weight", "-0.1"]),
        ("distillation.method=best", ["distillation.method", "best"]),
        ("distillation.window=0", ["distillation.window", "0"]),
        ("distillation.method=teacher", ["teacher"]),
        ("distillation={method: teacher, teacher: three}", ["three"]),
        ("distillation={method: teacher, teacher: one}", ["students.one.weights"]),
        (
            "distillation={method: teacher, teacher: {one: 0}}",
            ["teacher: the weight of 'one'", "0"],
        ),
        ("distillation={method: teacher, teacher: {}}", ["teacher is {}"]),
        ("distillation.teacher={}", ["teacher is {}"]),
        ("distillation.teacher=[one]", ["distillation.teacher: must be a student's name, or a weight"]),
        ("distillation={method: teacher, teacher: {three: 1}}", ["distillation.teacher", "three"]),
        ("students.one.frozen=true", ["students.one.weights: the student is frozen"]),
        ("students.one.frozen=1", ["students.0.frozen", "1"]),
        ("distillation.method=general", ["data.holdout_per_class"]),
        ("students=[]", ["students"]),
        ("students.1.name=one", ["one", "differ"]),
        ("students.1.name=ONE", ["one", "differ"]),
        ("students.1.name=a/b", ["students.1.name", "a/b"]),
        ("students.1.name=coordinator", ["students.1.name", "coordinator"]),
        ("students.one.optimizer.lr=0", ["optimizer.lr", "0"]),
        ("students.one.optimizer.name=lyon", ["optimizer", "lyon"]),
        ("students.two.optimizer.momentum=0.9", ["optimizer.momentum", "unknown"]),
        ("students.one.optimizer={momentum: 0.0, nesterov: true}", ["nesterov"]),
        ("students.one.schedule.milestones=[3, 2]", ["milestones", "increase"]),
        ("students.one.replicas=3", ["students.one.replicas", "3", "batch_size of 64"]),
        ("students.one.epochs=31", ["students.one.epochs", "31", "30"]),
        ("students.one.epochs=0", ["students.0.epochs", "0"]),
        ("accumulate=0", ["accumulate", "0"]),
        ("accumulate=3", ["accumulate: 3 parts", "batch_size of 64"]),
        ("students.one.ema={decay: 1.0}", ["students.0.ema.decay", "1"]),
        ("students.one.ema={decay: -0.1}", ["students.0.ema.decay", "-0.1"]),
        ("students.one.ema=true", ["students.0.ema", "True"]),
        ("students.one.ema={warmup: 3}", ["students.0.ema.warmup", "3"]),
        ("students.one.ema={start: 3}", ["students.0.ema.start", "unknown"]),
        ("students.one.precision=fp8", ["precision", "fp8"]),
        (
            "students.one={name: one, model: mlp, compile: true, sync_batchnorm: true}",
            ["students.0", "compile"],
        ),
        ("students.one.compile=max-autotune", ["students.0.compile", "max-autotune"]),
        (
            "students.one.resources.gpu=2",
            ["students.0.resources.gpu: Input should be 'auto' or less than", "2"],
        ),
        (
            "students.one.resources.gpu=all",
            ["students.0.resources.gpu: Input should be 'auto' or a", "'all'"],
        ),
        (
            "students.one.resources.gpu=null",
            ["students.0.resources.gpu: Input should be 'auto' or a", "None"],
        ),
        (
            "students.one.resources.gpu=true",
            ["students.0.resources.gpu: Input should be 'auto' or a", "True"],
        ),
        ("students.7.seed=1", ["'7'", "2"]),
        ("data.augment=[{degrees: 5}]", ["augment.0.name"]),
        ("epochs", ["path=value"]),
        ("epochs.more=1", ["epochs"]),
        ("data=3", ["data", "3"]),
        ("limits.step_s=0", ["limits.step_s", "0"]),
        ("failure.verify_every_steps=-1", ["failure.verify_every_steps", "-1"]),
        ("failure.verify_every_steps=0.5", ["failure.verify_every_steps", "0.5"]),
        ("failure.spares=-1", ["failure.spares", "-1"]),
        ("failure={spares: 2, policy: stop}", ["failure: spares: 2", "policy is 'stop'", "set it to 0"]),
        ("failure={spares: 2, max_failures: 0}", ["failure: spares: 2", "max_failures is 0", "set it to 0"]),
        ("failure.verify_every_steps=null", ["failure.verify_every_steps", "None"]),
        ("data={train: a, test: b, val: c, val_fraction: 0.1}", ["data: val and val_fraction", "'c'", "0.1"]),
        ("data.val_fraction=1.0", ["data.val_fraction", "less than 1", "1.0"]),
        ("data.val_fraction=0.0", ["data.val_fraction", "greater than 0", "0.0"]),
        ("evaluate.every_epochs=0", ["evaluate.every_epochs", "0"]),
        ("evaluate.on=train", ["evaluate.on", "'test' or 'val'", "'train'"]),
        ("evaluate.on=val", ["evaluate.on: 'val'", "data.val or data.val_fraction"]),
        ("checkpoint.best=acc", ["checkpoint.best", "'top1' or 'loss'", "'acc'"]),
        ("checkpoint.best=top1", ["checkpoint.best: 'top1'", "test data decides nothing", "set data.val"]),
        ("early_stopping={patience: 3}", ["early_stopping.metric: 'top1'", "test data decides nothing"]),
        ("early_stopping={metric: loss}", ["early_stopping.patience", "required"]),
        ("early_stopping={patience: 0}", ["early_stopping.patience", "0"]),
        ("early_stopping={patience: 1, metric: acc}", ["early_stopping.metric", "'acc'"]),
        *(
            (f"limits.{name}=1e300", [f"limits.{name}", "less than or equal to 2592000", "1e+300"])
            for name in LIMITS
        ),
        ("seed=-1", ["seed", "-1"]),
    ],
)
def test_what_is_wrong_is_named_in_one_line(override: str, words: list[str]) -> None:
    with pytest.raises(RecipeError) as caught:
        parse_recipe(MINIMAL, [override])
    message = str(caught.value)
    assert "\n" not in message
    assert all(word in message for word in words), message


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("a: [", "line"),
        ("epochs: 1\nepochs: 2", "twice"),
        ("- 1", "list"),
        ("", "NoneType"),
        ("a: !!x 1", "YAML"),
    ],
)
def test_what_is_not_a_recipe(text: str, word: str) -> None:
    with pytest.raises(RecipeError, match=word):
        parse_recipe(text)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"none\.yaml"):
        load_recipe(tmp_path / "none.yaml")


def test_overrides_by_place_and_by_name() -> None:
    recipe = parse_recipe(
        MINIMAL, ["students.0.optimizer.lr=5e-2", "students.two.seed=4", "data.holdout_per_class=2"]
    )
    assert (recipe.students[0].optimizer.lr, recipe.students[1].seed) == (0.05, 4)
    assert recipe.data.holdout_per_class == 2


def test_test_data_decides_nothing_beside_validation_data() -> None:
    more = ["data.val_fraction=0.1", "checkpoint.best=loss"]
    assert parse_recipe(MINIMAL, more).validates
    with pytest.raises(RecipeError, match=r"checkpoint\.best: 'loss' .* nothing: set evaluate\.on to val"):
        parse_recipe(MINIMAL, [*more, "evaluate.on=test"])


def test_an_own_augment_needs_own_views() -> None:
    with pytest.raises(RecipeError, match=r"students\.one\.augment"):
        parse_recipe(MINIMAL, ["students.one.augment=[]", "distillation.invariant=false"])


@pytest.mark.parametrize(
    ("field", "words"),
    [
        ("students.one.replicas=16", ["students.one.replicas: 16", "one of 8 parts (accumulate) of 8"]),
        ("distillation.window=2", ["accumulate: 8 needs distillation.window 1", "got 2"]),
        ("distillation.window=epoch", ["accumulate: 8 needs distillation.window 1", "'epoch'"]),
    ],
)
def test_what_parts_of_a_step_exclude(field: str, words: list[str]) -> None:
    with pytest.raises(RecipeError) as caught:
        parse_recipe(MINIMAL, ["accumulate=8", field])
    assert all(word in str(caught.value) for word in words), caught.value


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (["distillation.method=none"], ["soft targets", "'none' has none"]),
        (["distillation.method=dml"], ["soft targets", "'dml' has none"]),
        (["distillation.method=my:own"], ["method 'my:own' of your own"]),
        (["distillation.window=2"], ["distillation.window 1 only", "got 2"]),
        (["data.mixup={alpha: 0.2}"], ["data.mixup"]),
        (["data.cutmix={alpha: 0.2}"], ["data.cutmix"]),
        (["students.two.replicas=2"], ["'two' has replicas"]),
        (["batch_size=8", "accumulate=4"], ["cannot share 2 samples", "accumulate 4"]),
    ],
)
def test_what_several_coordinators_exclude(fields: list[str], words: list[str]) -> None:
    parse_recipe(MINIMAL, fields)
    with pytest.raises(RecipeError) as caught:
        parse_recipe(MINIMAL, [*fields, "coordinators=3"])
    assert all(word in str(caught.value) for word in ["coordinators: 3", *words]), caught.value
    assert "\n" not in str(caught.value)


def test_members_are_the_workers_and_the_assistants() -> None:
    recipe = parse_recipe(MINIMAL, ["coordinators=3"])
    assert recipe.assistants == ["coordinator/1", "coordinator/2"]
    assert recipe.members == ["one", "two", *recipe.assistants]
    assert parse_recipe(MINIMAL).members == ["one", "two"]


def test_a_frozen_teacher_has_no_average() -> None:
    teacher = ["distillation={method: teacher, teacher: one}", "students.one.weights=one.pt"]
    parse_recipe(MINIMAL, [*teacher, "students.two.ema={}"])
    with pytest.raises(RecipeError, match=r"students\.one\.ema: the teacher is frozen"):
        parse_recipe(MINIMAL, [*teacher, "students.one.ema={}"])


@pytest.mark.parametrize(
    ("field", "words"),
    [
        ("students.one.transfer=probe", "students.one.transfer: the student is frozen, so it cannot"),
        ("students.one.epochs=2", "students.one.epochs: the student is frozen, so it has no epochs"),
        ("students.two={name: two, model: mlp, weights: w.pt, frozen: true}", "besides the frozen one, two"),
    ],
)
def test_what_a_frozen_student_excludes(field: str, words: str) -> None:
    frozen = ["students.one.weights=one.pt", "students.one.frozen=true"]
    parse_recipe(MINIMAL, frozen)
    with pytest.raises(RecipeError) as caught:
        parse_recipe(MINIMAL, [*frozen, field])
    assert words in str(caught.value)


def test_students_that_start_identical_give_a_warning() -> None:
    same = ["students.0={name: a, model: mlp, seed: 1}", "students.1={name: b, model: mlp, seed: 1}"]
    (warning,) = parse_recipe(MINIMAL, same).warnings()
    assert "identical" in warning
    assert not parse_recipe(MINIMAL, [*same, "students.1.seed=2"]).warnings()
    assert not parse_recipe(MINIMAL, ["students.1.model=cnn_small"]).warnings()


def test_differences_name_what_changes_a_result() -> None:
    old = parse_recipe(MINIMAL)
    free = ["limits.step_s=3", "checkpoint.keep=9", "data.loader_workers=2", "students.one.resources.cpu=2"]
    assert differences(old, parse_recipe(MINIMAL, free)) == []
    assert differences(old, parse_recipe(MINIMAL, ["epochs=31"])) == ["epochs: 30 -> 31"]
    third = parse_recipe(MINIMAL.rstrip() + "\n  - {name: three, model: mlp}\n")
    assert any("students.2.name" in line for line in differences(old, third))


def test_null_leaves_an_item_of_a_list_out() -> None:
    assert parse_recipe(MINIMAL, ["students.one=null"]).names == ["two"]
    assert parse_recipe(MINIMAL, ["students.0=null"]).names == ["two"]
    renamed = parse_recipe(MINIMAL, ["students.one.name=first", "students.first.seed=3"])
    assert (renamed.names, renamed.students[0].seed) == (["first", "two"], 3)
    with pytest.raises(RecipeError, match="students"):
        parse_recipe(MINIMAL, ["students.one=null", "students.two=null"])


ANCHORS = """
data: {train: a.arrow, test: b.arrow}
students:
  - &first {name: one, model: mlp, optimizer: {lr: 0.05}, schedule: &steps {milestones: [1, 2]}}
  - &second {<<: *first, name: two, schedule: *steps}
  - {<<: *second, name: three, seed: 1}
"""


def test_anchors_share_what_is_written_and_nothing_else() -> None:
    recipe = parse_recipe(ANCHORS)
    assert recipe.names == ["one", "two", "three"]
    assert [student.optimizer.lr for student in recipe.students] == [0.05] * 3
    one, two, three = parse_recipe(
        ANCHORS, ["students.two.optimizer.lr=0.1", "students.one.schedule.milestones=[3]"]
    ).students
    assert [student.optimizer.lr for student in (one, two, three)] == [0.05, 0.1, 0.05]
    assert [student.schedule.milestones for student in (one, two, three)] == [[3], [1, 2], [1, 2]]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("students:\n  - {name: one, name: two}", "given twice"),
        ("a: &a {x: 1, x: 2}\nb: {<<: *a}", "given twice"),
        ("a: &a {x: 1}\nb: {<<: *a, <<: *a}", "given twice"),
        ("a: &a [*a]", "contains itself"),
    ],
)
def test_anchors_that_cannot_be(text: str, words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        parse_recipe(text)


def test_only_a_small_regular_file_is_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "large").write_bytes(b"#" * 1_000_001)
    for path, words in {
        tmp_path / "fifo": "not a regular file",
        Path("/dev/zero"): "not a regular file",
        tmp_path: "a folder, not a file",
        tmp_path / "large": "larger than 1,000,000 bytes",
        tmp_path / "missing": "FileNotFoundError: .*",
    }.items():
        with pytest.raises(RecipeError, match=f"^'{path}' cannot be read: {words}$"):
            load_recipe(path)


def test_a_path_of_set_is_no_deeper_than_a_recipe() -> None:
    with pytest.raises(RecipeError, match="a path of more than 100 parts"):
        parse_recipe(MINIMAL, ["data.augment." + "x." * 10_000 + "x=1"])


def test_line_ends_of_windows(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_bytes(MINIMAL.replace("\n", "\r\n").encode())
    assert load_recipe(tmp_path / "recipe.yaml") == parse_recipe(MINIMAL)


def test_a_model_may_have_arguments() -> None:
    deep = "students.one.model={name: 'my_nets:tiny', depth: 20, widths: [8, 16], norm: null}"
    recipe = parse_recipe(MINIMAL, [deep])
    assert parse_recipe(dump_recipe(recipe)) == recipe
    model = recipe.students[0].model
    assert str(model) == "my_nets:tiny(depth=20, widths=[8, 16], norm=None)"
    assert repr(model) == repr(str(model))
    assert recipe.model_dump(mode="json")["students"][0]["model"]["widths"] == [8, 16]
    assert dump_recipe(parse_recipe(MINIMAL)).count("model: cnn_small\n") == 1  # a name is stored as it was


def test_other_arguments_are_another_start() -> None:
    start = "students=[{{name: a, seed: 1, model: {}}}, {{name: b, seed: 1, model: {}}}]"
    one, same, other = "{name: 'm:f', d: 1, e: 2}", "{name: 'm:f', e: 2, d: 1}", "{name: 'm:f', d: 2, e: 2}"
    (warning,) = parse_recipe(MINIMAL, [start.format(one, same)]).warnings()
    assert "model 'm:f(d=1, e=2)'" in warning
    assert not parse_recipe(MINIMAL, [start.format(one, other)]).warnings()


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("3", "students.0.model: Input should be a valid string (got 3)"),
        ("null", "students.0.model: Input should be a valid string (got None)"),
        ("{depth: 3}", "students.0.model.name: Field required"),
        ("{name: 3}", "students.0.model.name: Input should be a valid string (got 3)"),
        ("{name: 'm:f', widths: {1: 2}}", "students.0.model: widths: must be a finite number"),
        ("{name: 'm:f', depth: .inf}", "students.0.model: depth: must be a finite number"),
    ],
)
def test_mistakes_in_a_model(model: str, words: str) -> None:
    with pytest.raises(RecipeError) as caught:
        parse_recipe(MINIMAL, [f"students.one.model={model}"])
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_bank_in_a_file_is_not_kept_in_memory() -> None:
    overrides = ["checkpoint.in_memory_every_steps=9", "distillation.window=epoch"]
    parse_recipe(MINIMAL, overrides)
    with pytest.raises(RecipeError, match=r"checkpoint\.in_memory_every_steps: 9 takes memory .*folder 'x'"):
        parse_recipe(MINIMAL, [*overrides, "distillation.bank.folder=x"])

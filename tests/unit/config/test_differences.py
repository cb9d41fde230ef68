"""Which changes of a recipe make another run."""

from __future__ import annotations

import pytest

from kdcl_dist.config.differences import (
    FREE_FIELDS,
    ROUNDING_FIELDS,
    are_of_one_arm,
    differences,
    forbidden_changes,
    roundings,
)
from kdcl_dist.config.recipe_file import parse_recipe

BASE = "data: {train: a, test: b}\nstudents: [{name: one, model: mlp}, {name: two, model: mlp}]\n"
OLD = parse_recipe(BASE)


@pytest.mark.parametrize(
    "override",
    [
        "name=other",
        "checkpoint.every_epochs=5",
        "checkpoint.in_memory_every_steps=9",
        "analysis.every_steps=0",
        "failure={policy: stop}",
        "limits.step_s=1",
        "data.loader_workers=3",
        "coordinators=3",
        "distillation.bank.folder=bank",
    ],
)
def test_free_fields_make_no_difference(override: str) -> None:
    new = parse_recipe(BASE, [override])
    assert differences(OLD, new) == roundings(OLD, new) == []
    assert any(override.startswith(field) for field in FREE_FIELDS)


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("students.two.resources.cpu=4", "students.1.resources.cpu: 1 -> 4"),
        ("students.one.accelerator=A100", "students.0.accelerator: None -> 'A100'"),
        ("students.one.channels_last=true", "students.0.channels_last: False -> True"),
        ("students.one.compile=true", "students.0.compile: False -> True"),
    ],
)
def test_some_fields_change_last_bits_only(override: str, line: str) -> None:
    new = parse_recipe(BASE, [override])
    assert differences(OLD, new) == []
    assert roundings(OLD, new) == [line]


@pytest.mark.parametrize("gpu", ["0", "1"])
def test_whether_a_gpu_changes_last_bits_is_left_to_the_devices(gpu: str) -> None:
    new = parse_recipe(BASE, [f"students.one.resources.gpu={gpu}"])
    assert differences(OLD, new) == roundings(OLD, new) == []


def test_every_rounding_field_is_tried() -> None:
    assert {field.split(".")[2] for field in ROUNDING_FIELDS} == {
        "resources",
        "accelerator",
        "channels_last",
        "compile",
    }


@pytest.mark.parametrize(
    ("override", "lines"),
    [
        ("epochs=31", ["epochs: 30 -> 31"]),
        ("distillation.bank.top_k=4", ["distillation.bank.top_k: None -> 4"]),
        ("data.augment=[{name: Resize, size: 9}]", None),
        ("students.one.schedule.milestones=[3]", None),
        ("students.two=null", None),
        (
            "students.one.optimizer={name: sgd, lr: 0.2, nesterov: true}",
            [
                "students.0.optimizer.lr: 0.1 -> 0.2",
                "students.0.optimizer.nesterov: False -> True",
            ],
        ),
    ],
)
def test_everything_else_makes_another_run(override: str, lines: list[str] | None) -> None:
    new = parse_recipe(BASE, [override])
    found = differences(OLD, new)
    assert found
    assert lines is None or found == lines
    assert len(differences(new, OLD)) == len(found)


def test_an_absent_item_is_named() -> None:
    new = parse_recipe(BASE, ["students.one.schedule.milestones=[3]"])
    assert differences(OLD, new) == ["students.0.schedule.milestones.0: '(absent)' -> 3"]


def test_a_resumption_may_end_otherwise_but_not_choose_otherwise() -> None:
    base = BASE.replace("test: b", "test: b, val: c")
    old = parse_recipe(base, ["checkpoint.best=top1", "early_stopping={patience: 3}"])
    assert old.early_stopping is not None
    for change in (
        "early_stopping={patience: 5}",
        "early_stopping={patience: 3, metric: loss}",
        "early_stopping=null",
    ):
        new = parse_recipe(base, ["checkpoint.best=top1", change])
        assert forbidden_changes(old, new) == []
        assert differences(old, new), "another arm of a comparison"
    for best, lines in (("null", []), ("loss", ["checkpoint.best: 'top1' -> 'loss'"])):
        new = parse_recipe(base, [f"checkpoint={{best: {best}, keep: 7}}", "early_stopping={patience: 3}"])
        assert forbidden_changes(old, new) == lines
    assert forbidden_changes(new, old) == ["checkpoint.best: 'loss' -> 'top1'"]
    for change in ("data.val=d", "evaluate.every_epochs=2", "evaluate.on=test", "data.val=null"):
        assert forbidden_changes(parse_recipe(base), parse_recipe(base, [change]))


@pytest.mark.parametrize(
    ("left", "right", "alike"),
    [
        (["seed=0"], ["seed=1"], True),
        (["seed=0", "students.one.seed=0"], ["seed=1", "students.one.seed=1"], True),
        (["seed=3", "data.train=d10/3.csv"], ["seed=12", "data.train=d10/12.csv"], True),
        (["seed=0", "students.one.seed=0"], ["seed=1", "students.one.seed=2"], False),
        (["seed=0", "epochs=7"], ["seed=1", "epochs=8"], False),
        (["seed=0"], ["seed=1", "students.one.seed=1"], False),
    ],
)
def test_recipes_of_an_arm_have_their_seed_where_the_arm_has_written_it(
    left: list[str], right: list[str], alike: bool
) -> None:
    assert are_of_one_arm(parse_recipe(BASE, left), parse_recipe(BASE, right)) == alike

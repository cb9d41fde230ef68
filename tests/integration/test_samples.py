"""Samples that are no images train as in the sequential reference, bit for bit, also over a break."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from pathlib import Path

import words
from cohorts import Cohort, Inject
from equality import check, check_replicas

from kdcl_dist.config.recipe import Recipe
from kdcl_dist.config.recipe_file import parse_recipe
from kdcl_dist.launch import local
from kdcl_dist.run.run import Run

SENTENCES = [
    "students=[{name: a, model: {name: 'words:Bag', dropout: 0.3}}, {name: b, model: 'words:Recurrent'}]",
    f"data.collate={{values: {{tokens: {words.PADDING}}}}}",
    "students.a.ema={decay: 0.6}",
]


def recipe_of(data: dict[str, str], *overrides: str) -> Recipe:
    text = f"""
        name: samples
        epochs: 2
        batch_size: 16
        data: {{train: {data["train"]}, test: {data["test"]}}}
        students: [{{name: a, model: 'words:Table'}}, {{name: b, model: {{name: 'words:Table', width: 6}}}}]
        failure: {{max_failures: 0}}
        limits: {{startup_s: 200, step_s: 30}}
    """
    return parse_recipe(text, overrides)


def stopped_and_resumed(recipe: Recipe, make_run: Callable[..., Run]) -> Run:
    """A run that was stopped in its first epoch, and went on."""
    asked = itertools.count()
    stopped = Cohort(make_run(recipe, "r")).train(stop=lambda: next(asked) + 1 >= 3)
    assert not stopped.errors
    assert stopped.finished["coordinator"] is False
    run = make_run(recipe, "r", resume=True)
    assert not Cohort(run).train().errors
    return run


def test_a_table_stopped_and_resumed(tmp_path: Path, make_run: Callable[..., Run]) -> None:
    fields = (
        "data.normalise=true",
        "distillation.method=general",
        "data.holdout_per_class=3",
        "accumulate=2",
    )
    check(stopped_and_resumed(recipe_of(words.write(tmp_path / "table", words.row), *fields), make_run))


def test_padded_sequences_stopped_and_resumed(tmp_path: Path, make_run: Callable[..., Run]) -> None:
    data, plain = words.write(tmp_path / "sentences", words.sentence), "students.a.model={name: 'words:Bag'}"
    length = f"data.collate={{values: {{tokens: {words.PADDING}, mask: 0}}, length: 6}}"
    recipe = recipe_of(data, *SENTENCES, plain, length, "data.val_fraction=0.2", "distillation.window=2")
    check(stopped_and_resumed(recipe, make_run))


def test_padded_sequences_with_random_views_and_a_death(
    tmp_path: Path, make_run: Callable[..., Run], inject: Inject
) -> None:
    data = words.write(tmp_path / "sentences", words.sentence)
    views = ("data.augment=[{name: 'words:Forget'}]", "data.loader_workers=1")
    run = make_run(recipe_of(data, *SENTENCES, *views, "failure.max_failures=1"))
    met = inject("b", "forward", 4, "kill")
    assert local.launch(run, lambda event: None, threading.Event())
    assert met.exists()
    check(run)


def test_replicas_of_padded_sequences(tmp_path: Path, make_run: Callable[..., Run]) -> None:
    data = words.write(tmp_path / "sentences", words.sentence)
    students = "students=[{name: a, model: 'words:Bag', replicas: 2}, {name: b, model: 'words:Recurrent'}]"
    run = make_run(recipe_of(data, students, SENTENCES[1]))
    assert not Cohort(run).train().errors
    check_replicas(run, atol=1e-6, step=8)

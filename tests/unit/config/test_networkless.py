"""Students that are files of logits, or networks behind a URL: fields, and each mistake in one line."""

from __future__ import annotations

import pytest

from kdcl_dist.config.recipe import Recipe
from kdcl_dist.config.recipe_file import parse_recipe
from kdcl_dist.errors import RecipeError

URL = "http://10.0.0.5:8410"


def recipe_with(student: str, *overrides: str) -> Recipe:
    text = f"data: {{train: x, test: x}}\nstudents: [{{name: a, model: mlp}}, {{name: t, {student}}}]"
    return parse_recipe(text, overrides)


def test_they_only_teach() -> None:
    for student in ("logits: t.arrow", f"model: '{URL}'"):
        recipe = recipe_with(student)
        assert recipe.is_frozen(recipe.students[1])
        assert recipe.students[1].resources.gpu == ("auto" if recipe.stored else 0)
        assert [worker.name for worker in recipe.workers] == ["a"] if recipe.stored else ["a", "t"]
        assert parse_recipe(str(recipe)) == recipe


@pytest.mark.parametrize(
    "url",
    [
        "http://h:8410",
        "https://h",
        "http://[::1]:8410/models/large/",
    ],
)
def test_urls(url: str) -> None:
    assert recipe_with(f"model: '{url}'").students[1].model == url


@pytest.mark.parametrize(
    ("student", "words"),
    [
        ("model: none", "one of model and logits"),
        ("model: mlp, logits: t.arrow", "one of model and logits"),
        ("logits: t.arrow, weights: w.pt", "weights: the student is a file of logits"),
        ("logits: t.arrow, frozen: true", "frozen: the student is a file of logits"),
        ("logits: t.arrow, until_epoch: 2", "until_epoch: the student is a file of logits"),
        ("logits: t.arrow, replicas: 2", "replicas: the student is a file of logits"),
        (f"model: '{URL}', frozen: false", "frozen: the network is computed by"),
        (f"model: '{URL}', weights: w.pt", "weights: the network is computed by"),
        (f"model: '{URL}', precision: bf16", "precision: the network is computed by"),
        (f"model: '{URL}', compile: true", "compile: the network is computed by"),
        (f"model: '{URL}', resources: {{gpu: 1}}", "resources.gpu: the network is computed by"),
        (f"model: '{URL}', ema: {{}}", "ema: the student is frozen"),
        (f"model: {{name: '{URL}', depth: 3}}", "http://HOST:PORT, without arguments"),
        ("model: 'http://'", "http://HOST:PORT"),
        ("model: 'http://h:port'", "http://HOST:PORT"),
        ("model: 'http://h:0'", "http://HOST:PORT"),
        ("model: 'http://h:99999'", "http://HOST:PORT"),
        ("model: 'http://h/?a=b'", "http://HOST:PORT"),
        ("model: 'http://h/a b'", "http://HOST:PORT"),
        ('model: "http://h\\n:80"', "http://HOST:PORT"),
        ('model: "http://h/\\u00e4"', "http://HOST:PORT"),
        ("model: 'http://me:secret@h'", "would be stored in the run folder"),
        ("model: 'http://me@h'", "would be stored in the run folder"),
    ],
)
def test_an_impossible_field_is_one_line(student: str, words: str) -> None:
    with pytest.raises(RecipeError) as caught:
        recipe_with(student)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)


def test_a_cohort_needs_a_student_that_learns() -> None:
    with pytest.raises(RecipeError, match="at least one student that learns"):
        parse_recipe("data: {train: x, test: x}\nstudents: [{name: t, logits: t.arrow}]")


def test_mixed_samples_have_no_stored_logits() -> None:
    with pytest.raises(RecipeError, match=r"students\.t\.logits: a file has no logits of mixed samples"):
        recipe_with("logits: t.arrow", "data.mixup={}")

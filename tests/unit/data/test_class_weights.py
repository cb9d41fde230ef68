"""Class weights against scikit-learn's, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from cohorts import MakeRecipe, write_images
from sklearn.utils.class_weight import compute_class_weight

from kdcl_dist.data.class_weights import class_weights
from kdcl_dist.data.training_data import TrainingData
from kdcl_dist.errors import RecipeError
from kdcl_dist.student.student import Student


@pytest.mark.parametrize("seed", range(5))
def test_balanced_equals_scikit_learns(seed: int) -> None:
    labels_N = np.random.default_rng(seed).choice(5, size=400, p=[0.5, 0.2, 0.15, 0.1, 0.05])
    found = class_weights("balanced", list("abcde"), labels_N, "")
    expected = compute_class_weight("balanced", classes=np.arange(5), y=labels_N)
    assert found.dtype == torch.float32
    assert found.tolist() == pytest.approx(expected.tolist())
    assert found[labels_N].mean().item() == pytest.approx(1)


def test_the_recipes_training_samples_are_counted(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    """Those of data.classes, without held-out samples."""
    path = write_images(tmp_path / "uneven.arrow", 61)  # 16 samples of class 0, 15 of each other
    fields = f"data.train={path}", "data.holdout_per_class=5", "students.b.class_weights=balanced"
    training_data = TrainingData.open(make_recipe(*fields))
    assert training_data.class_weights(0) is None
    weights = training_data.class_weights(1)
    assert weights is not None
    assert weights.tolist() == pytest.approx([41 / (4 * 11), *[41 / (4 * 10)] * 3])
    some = TrainingData.open(make_recipe(*fields, "data.classes=[class 3, class 0]")).class_weights(1)
    assert some is not None
    assert some.tolist() == pytest.approx([21 / (2 * 10), 21 / (2 * 11)])


def test_given_weights_go_by_name(make_recipe: MakeRecipe) -> None:
    given = "students.a.class_weights={class 3: 4, class 0: 0.5, class 2: 3, class 1: 2.5}"
    training_data = TrainingData.open(make_recipe(given))
    device = torch.device("cpu")
    found, other = (Student.of(training_data, index, device=device).loss.class_weights_C for index in (0, 1))
    assert found is not None
    assert found.tolist() == [0.5, 2.5, 3, 4]
    assert other is None


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("{class 0: 1}", "no weight for 'class 1', 'class 2', 'class 3', and"),
        ("{}", "no weight for 'class 0'"),
        ("{class 0: 1, cat: 2}", "'cat' is no class of the data .it has 'class 0', 'class 1'"),
        ("even", "must be 'balanced', or a weight for each class.*got 'even'"),
        ("[1, 2, 3, 4]", "must be 'balanced', or a weight for each class"),
        ("{0: 1, 1: 1, 2: 1, 3: 1}", "needs quotes"),
        ("{class 0: 0}", "the weight of 'class 0' must be a number above 0.*got 0"),
        ("{class 0: -1}", "the weight of 'class 0' .*got -1"),
        ("{class 0: .inf}", "the weight of 'class 0' .*got inf"),
        ("{class 0: .nan}", "the weight of 'class 0' .*got nan"),
        ("{class 0: 1e9}", "the weight of 'class 0' .*1e6 at most"),
        ("{class 0: true}", "the weight of 'class 0' .*got True"),
        ("{class 0: much}", "the weight of 'class 0' .*got 'much'"),
    ],
)
def test_what_is_wrong_is_named_in_one_line(given: str, words: str, make_recipe: MakeRecipe) -> None:
    with pytest.raises(RecipeError, match=rf"students\.(0|a)\.class_weights: .*{words}") as caught:
        TrainingData.open(make_recipe(f"students.a.class_weights={given}"))
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


def test_nothing_is_balanced_without_samples_of_a_class(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    path = write_images(tmp_path / "three.arrow", 48, classes=4)
    dataset = TrainingData.open(make_recipe(f"data.train={path}")).train
    labels_N = np.asarray(dataset.labels)
    with pytest.raises(RecipeError, match=r"^f: 'balanced' needs .* none of 'class 2': leave them out"):
        class_weights("balanced", dataset.classes, labels_N[labels_N != 2], "f")

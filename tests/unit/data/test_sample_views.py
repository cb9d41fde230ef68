"""A recipe applied to samples that are no images: views, batches, normalisation, and what is refused."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cohorts import write_images
from pydantic import ValidationError
from sample_sets import Sentences, sentence, write_sentences

from kdcl_dist.config.recipe import Recipe
from kdcl_dist.config.recipe_file import parse_recipe
from kdcl_dist.config.stored_imports import check_recipe_imports
from kdcl_dist.data.data_warnings import data_warnings
from kdcl_dist.data.probes import first_test_views, first_views, probes
from kdcl_dist.data.samples import named
from kdcl_dist.data.training_data import TrainingData
from kdcl_dist.errors import DataError, ImportRefused, KdclError, RecipeError

OWN = """
import random
import numpy, torch
from sample_sets import Sentences

class Jitter:
    def __init__(self, scale=1.0): self.scale = scale
    def __call__(self, sample):
        noise = torch.rand(2) + random.random() + numpy.random.random()
        return sample | {"weight": sample["weight"] + self.scale * noise}

def tensor(): return lambda sample: sample["weight"]
def nan(): return lambda sample: sample | {"weight": sample["weight"] * torch.nan}
def text(): return lambda sample: "text"
def fails(): return lambda sample: sample["nothing"]
def sometimes(): return lambda sample: sample if len(sample["tokens"]) > 1 else sample["weight"]

def weights(samples): return torch.stack([sample["weight"] for sample in samples])
def short(samples): return weights(samples)[:1]
def nothing(samples): return None
def broken(samples): raise OSError("no disk")

class Wide(Sentences):
    def sample(self, index): return super().sample(index) | {"weight": torch.zeros(2, 3)}
class Nan(Sentences):
    def sample(self, index): return super().sample(index) | {"weight": torch.full((2,), torch.nan)}
class Odd(Sentences):
    def sample(self, index): return {"weight": torch.ones(2).to(torch.float64 if index else torch.float32)}
class Scaled(Sentences):
    mean, std = {"weight": [1.0]}, {"weight": [2.0]}
class Whole(Sentences):
    def sample(self, index): return torch.tensor([index])
class Outside(Sentences):
    labels = numpy.array([7])
    def __init__(self): pass
class NoSample:
    labels, classes = numpy.array([0, 1]), ("a", "b")
    def __len__(self): return 2
"""


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "own_samples.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    write_sentences(tmp_path / "train.arrow", 48)
    return write_sentences(tmp_path / "test.arrow", 10)


def recipe(path: Path, *overrides: str) -> Recipe:
    text = f"""
        epochs: 2
        batch_size: 8
        data: {{train: {path.with_name("train.arrow")}, test: {path}}}
        students: [{{name: a, model: mlp}}, {{name: b, model: mlp, seed: 5}}]
    """
    return parse_recipe(text, overrides)


def opened(path: Path, *overrides: str) -> TrainingData:
    return TrainingData.open(recipe(path, *overrides))


def same(one: Any, other: Any) -> bool:
    pairs = zip(named(one).items(), named(other).items(), strict=True)
    return all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)


def test_batches_are_padded_samples(path: Path) -> None:
    data = opened(path, "data.val_fraction=0.2", "data.holdout_per_class=2")
    batches = list(data.training_batches(0, 0))
    seen = {int(number) for batch in batches for number in batch.ids}
    assert not seen & {int(number) for batch in data.holdout_batches() for number in batch.ids}
    assert not seen & set(data.validation[1].tolist())
    for batch in batches:
        longest = max(1 + int(number) % 5 for number in batch.ids)
        assert batch.labels.tolist() == [int(number) % 3 for number in batch.ids]
        for row, number in enumerate(batch.ids.tolist()):
            wanted, length = sentence(number), 1 + number % 5
            assert batch.inputs["tokens"].shape == (8, longest)
            assert torch.equal(batch.inputs["tokens"][row, :length], wanted["tokens"])
            assert not batch.inputs["tokens"][row, length:].any()
            assert batch.inputs["mask"][row].sum() == length
            assert torch.equal(batch.inputs["weight"][row], wanted["weight"])


@pytest.mark.parametrize("workers", [1, 2])
def test_loader_processes_give_the_same(path: Path, workers: int) -> None:
    fields = ("data.augment=[{name: 'own_samples:Jitter', scale: 0.5}]", "data.normalise=true")
    alone, found = opened(path, *fields), opened(path, *fields, f"data.loader_workers={workers}")
    for one, other in zip(alone.training_batches(1, 3), found.training_batches(1, 3), strict=True):
        assert torch.equal(one.ids, other.ids)
        assert same(one.inputs, other.inputs)


def test_a_view_is_a_function_of_seed_epoch_student_and_sample(path: Path) -> None:
    data = opened(path, "data.augment=[{name: 'own_samples:Jitter'}]")
    again = opened(path, "data.augment=[{name: 'own_samples:Jitter'}]")
    views, others = data._training_views(0), data._training_views(1)
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    first = views.batch(0, np.array([3, 5, 8]))
    random.seed(2), np.random.seed(2), torch.manual_seed(2)
    alone = again._training_views(0)[0, 5]
    assert torch.equal(first["weight"][1], alone["weight"])
    assert torch.equal(views.batch(1, np.array([5]))["weight"][0], views[1, 5]["weight"])
    assert not torch.equal(alone["weight"], views[1, 5]["weight"]), "another epoch"
    assert not torch.equal(alone["weight"], others[0, 5]["weight"]), "another student"
    assert not torch.equal(first["weight"][0] - first["weight"][1], torch.tensor([-1.0, 0.0])), (
        "another sample"
    )


def test_normalisation_is_by_the_training_samples(path: Path) -> None:
    rows_NF = torch.stack([sentence(index)["weight"] for index in range(48)]).double()
    mean_F, std_F = rows_NF.mean(0), rows_NF.std(0, correction=0)
    std_F[1] = 1  # its feature is constant
    stored = opened(path, "data.normalise=true")
    found = opened(path, "data.normalise=true", "data.train='sample_sets:more'")
    for data in (stored, found):
        batch = next(data.test_batches())
        wanted = (torch.stack([sentence(index)["weight"] for index in range(8)]) - mean_F) / std_F
        torch.testing.assert_close(batch.inputs["weight"], wanted.float())
        assert batch.inputs["tokens"].dtype == torch.int64


def test_an_empty_share_has_the_tensors_of_a_batch(path: Path) -> None:
    data = opened(path)
    inputs = data.test_views(data.test).batch(0, np.empty(0, np.int64))
    assert {name: len(tensor) for name, tensor in inputs.items()} == {"tokens": 0, "mask": 0, "weight": 0}


def test_some_classes_of_samples(path: Path) -> None:
    data = opened(path, "data.classes=[c, a]")
    assert len(data.train) == 32
    assert same(data.train.sample(0), sentence(0))
    assert data.train.labels[:3].tolist() == [1, 0, 1]
    weights = opened(path, "students.a.class_weights={a: 1, b: 2, c: 3}").class_weights(0)
    assert weights.tolist() == [1, 2, 3]


def test_an_own_collate(path: Path) -> None:
    given = recipe(path, "data.collate='own_samples:weights'")
    batch = next(TrainingData.open(given).test_batches())
    assert torch.equal(batch.inputs[3], sentence(3)["weight"])
    with pytest.raises(ImportRefused, match=r"data\.collate: 'own_samples:weights'"):
        check_recipe_imports(given, "run", ())


def test_probes_have_each_size_and_shape(path: Path) -> None:
    data = opened(path, "students.a.replicas=2")
    sizes = [len(inputs["tokens"]) for _, inputs in probes(data, 0)]
    assert set(sizes) == {4, 1}, "10 test samples: 4 of each worker, then 1"


def test_large_numbers_are_a_warning(path: Path) -> None:
    (line,) = data_warnings(opened(path, "data.augment=[{name: 'own_samples:Jitter', scale: 1000}]"))
    assert "data.augment: 'weight' of the first samples has deviation" in line
    assert "data.normalise: true" in line
    assert not data_warnings(opened(path))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (
            ["data.augment=[{name: RandomCrop, size: 8}]"],
            r"data\.augment: transform 0: RandomCrop is for images",
        ),
        (["data.augment=[{name: Cutout, size: 8}]"], "Cutout is for images"),
        (["data.test_view=[{name: Resize, size: 8}]"], r"data\.test_view: transform 0: Resize is for images"),
        (
            ["students.a.augment=[{name: ToDtype}]"],
            r"students\.a\.augment: transform 0: ToDtype is for images",
        ),
        (["data.mixup={}"], r"data\.mixup is for images, and the samples of data\.train are none"),
        (["data.cutmix={}"], r"data\.cutmix is for images"),
        (["data.collate='own_samples:missing'"], r"data\.collate: .* no attribute 'missing'"),
        (["data.train='own_samples:Wide'"], r"data\.train and data\.test have samples that differ: weight"),
        (["data.train='own_samples:Nan'"], r"data\.train: .*sample\(0\) has NaN .* in 'weight'"),
        (["data.train='own_samples:Odd'"], r"sample\(0\) and sample\(\d+\) differ: .*float32.*float64"),
        (["data.train='own_samples:Outside'"], "the label in row 0 is 7, but there are 3 classes"),
        (["data.train='own_samples:NoSample'"], "sample"),
        (["data.normalise=true", "data.train='own_samples:Scaled'"], "a number for each feature of weight"),
        (["data.augment=[{name: 'own_samples:text'}]"], "the transforms give a str for sample"),
        (["data.augment=[{name: 'own_samples:fails'}]"], r"data\.augment: a transform fails on sample \d+"),
        (["data.augment=[{name: 'own_samples:nan'}]"], r"data\.augment: the first batch has NaN"),
        (["data.augment=[{name: 'own_samples:sometimes'}]"], "have other tensors, or other names"),
        (["data.collate='own_samples:short'"], r"data\.collate gives 'input' as \(1, 2\) for 16 samples"),
        (["data.collate='own_samples:nothing'"], r"data\.collate gives a NoneType"),
        (["data.collate='own_samples:broken'"], r"data\.collate: 16 samples .* OSError: no disk"),
        (["data.collate={values: {words: 0}}"], "values names 'words', have tokens, mask, weight"),
        (["data.collate={values: {tokens: 0.5}}"], "0.5 cannot pad whole numbers"),
    ],
    ids=str,
)
def test_what_is_refused_before_a_run(fields: list[str], words: str, path: Path) -> None:
    def look() -> None:
        data = opened(path, *fields)
        first_views(data, 0, 16)
        first_test_views(data, 16)

    with pytest.raises((DataError, RecipeError), match=words) as caught:
        look()
    assert isinstance(caught.value, KdclError)
    assert caught.value.exit_code == 2
    assert "\n" not in caught.value.message


@pytest.mark.parametrize("field", ["data.collate={}", "data.normalise=true"])
def test_fields_that_are_not_for_images(field: str, path: Path, tmp_path: Path) -> None:
    images = str(write_images(tmp_path / "images.arrow", 24))
    with pytest.raises(RecipeError, match="is for samples that are no images"):
        opened(path, f"data.train={images}", f"data.test={images}", field)
    with pytest.raises(
        DataError, match=r"data\.test has .* samples that are no images, data\.train .* 1 channels"
    ):
        opened(path, f"data.train={images}")


def test_a_length_names_its_tensors(path: Path) -> None:
    with pytest.raises((RecipeError, ValidationError), match="names none"):
        recipe(path, "data.collate={length: 8}")


def test_an_object_has_the_samples_of_the_file(path: Path) -> None:
    data = opened(path, "data.test='sample_sets:Sentences'")
    assert isinstance(data.test, Sentences)
    assert same(next(data.test_batches()).inputs, next(opened(path).test_batches()).inputs)

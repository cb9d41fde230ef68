"""From one task to another: some classes of a data set, and networks that begin from other weights."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cohorts import ROOT, Cohort, MakeRecipe, assert_same, weights
from torch import Tensor, nn

from benchmarks.in_turn import InTurn
from kdcl_dist import models
from kdcl_dist.compare.experiment import jobs_of, load_table
from kdcl_dist.config.recipe import Recipe
from kdcl_dist.config.recipe_file import load_recipe
from kdcl_dist.data.dataset import fingerprint
from kdcl_dist.data.sources.opening import open_dataset
from kdcl_dist.data.subset import of_classes
from kdcl_dist.data.training_data import TrainingData
from kdcl_dist.errors import DataError, ModelError, RecipeError
from kdcl_dist.models.transfer import head_of
from kdcl_dist.run.run import Run
from kdcl_dist.student.student import Student


@pytest.fixture
def other(tmp_path: Path) -> str:
    """Weights of the network cnn_small for another number of classes, with running statistics."""
    torch.manual_seed(1)
    network = models.build("cnn_small", 9, 1)
    network(torch.randn(64, 1, 8, 8))
    torch.save(network.state_dict(), tmp_path / "other.pt")
    return str(tmp_path / "other.pt")


def test_some_classes_of_a_data_set(data: dict[str, str]) -> None:
    whole, part = open_dataset(data["train"]), of_classes(open_dataset(data["train"]), ["class 3", "class 1"])
    expected = [i for i, label in enumerate(whole.labels) if label in (1, 3)]
    assert len(part) == len(expected)
    assert part.labels.tolist() == [{3: 0, 1: 1}[int(whole.labels[i])] for i in expected]
    for position, index in enumerate(expected):
        assert torch.equal(part.image(position), whole.image(index))
    assert (part.classes, part.mean, part.std) == (("class 3", "class 1"), whole.mean, whole.std)
    prints = [fingerprint(of_classes(open_dataset(data["train"]), n)) for n in (None, ["class 3", "class 1"])]
    prints.append(fingerprint(of_classes(open_dataset(data["train"]), ["class 1", "class 3"])))
    assert len(set(prints)) == 3
    assert prints[0] == fingerprint(whole)


def test_mistakes_in_classes(make_recipe: MakeRecipe) -> None:
    with pytest.raises(DataError, match=r"class 9 is no class of the data set .*class 0"):
        TrainingData.open(make_recipe("data.classes=[class 1, class 9]"))
    for value, words in (("[a]", "at least 2"), ("[a, a]", "differ"), ("[1, 2]", "valid string")):
        with pytest.raises(RecipeError, match=words):
            make_recipe(f"data.classes={value}")


def transferred(make_recipe: MakeRecipe, other: str, kind: str, *more: str) -> Recipe:
    overrides = [f"students.a.weights={other}", f"students.a.transfer={kind}", "students.b=null"]
    return make_recipe("distillation.method=none", *overrides, *more)


def test_fine_tuning_begins_with_the_other_body_and_a_head_of_its_own(
    make_recipe: MakeRecipe, other: str
) -> None:
    cohort = InTurn(transferred(make_recipe, other, "finetune"))
    begun, given = cohort.students[0].model.state_dict(), torch.load(other, weights_only=True)
    plain = InTurn(make_recipe("distillation.method=none", "students.b=null")).students[0].model.state_dict()
    for name, value in begun.items():
        source = plain if name.startswith("classifier.") else given
        assert torch.equal(value, source[name]), name
    before = copy.deepcopy(begun)
    cohort.train()
    after = cohort.students[0].model.state_dict()
    assert not any(torch.equal(after[name], before[name]) for name in before)


def test_a_probe_equals_a_linear_layer_on_fixed_features(make_recipe: MakeRecipe, other: str) -> None:
    cohort = InTurn(transferred(make_recipe, other, "probe", "epochs=4"))
    network = copy.deepcopy(cohort.students[0].model).eval()
    head = copy.deepcopy(network.get_submodule("classifier"))
    network.classifier = nn.Identity()  # type: ignore[assignment]
    before = copy.deepcopy(cohort.students[0].model.state_dict())
    assert isinstance(head, nn.Linear)
    optimizer = torch.optim.SGD(head.parameters(), 0.1, momentum=0.9, weight_decay=5e-4)
    for batch in cohort.training_data.training_batches(0, 0):
        with torch.no_grad():
            features: Tensor = network(batch.inputs)
        optimizer.zero_grad()
        F.cross_entropy(head(features), batch.labels).backward()
        optimizer.step()
    cohort.train()
    after = cohort.students[0].model.state_dict()
    assert torch.allclose(after.pop("classifier.weight"), head.weight, atol=1e-6)
    assert torch.allclose(after.pop("classifier.bias"), head.bias, atol=1e-6)
    assert_same(after, {name: before[name] for name in after})


@pytest.mark.parametrize("kind", ["probe", "finetune"])
def test_a_run_of_replicas_stopped_and_resumed(
    make_recipe: MakeRecipe, make_run: Callable[..., Run], other: str, kind: str
) -> None:
    recipe = transferred(make_recipe, other, kind, "students.a.replicas=2")
    whole, part = make_run(recipe), make_run(recipe, name="part")
    assert not Cohort(whole).train().errors
    calls = iter([False] * 2 + [True] * 9)
    assert not Cohort(part).train(stop=lambda: next(calls)).errors
    Path(other).unlink()  # a resumed run does not need them
    cohort = Cohort(make_run(recipe, name="part", resume=True))
    assert 0 < cohort.run.step < 6
    assert not cohort.train().errors
    assert_same(weights(whole.folder, 6, "a"), weights(part.folder, 6, "a"))


class Convolutional(nn.Module):
    """Ends in a convolution."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.last = nn.Conv2d(1, num_classes, 8)


def test_mistakes_in_transfer(make_recipe: MakeRecipe, other: str) -> None:
    with pytest.raises(RecipeError, match=r"students.0: transfer: 'probe' .*weights is null"):
        make_recipe("students.a.transfer=probe")
    with pytest.raises(RecipeError, match="frozen, so it cannot learn a new head"):
        make_recipe(
            "distillation={method: teacher, teacher: a}",
            f"students.a.weights={other}",
            "students.a.transfer=finetune",
        )
    with pytest.raises(RecipeError, match=r"transfer.*'all'"):
        make_recipe(f"students.a.weights={other}", "students.a.transfer=all")
    with pytest.raises(ModelError, match="it has none"):
        head_of(Convolutional(4), "own:Net", 4)
    with pytest.raises(ModelError, match="its last has 4 outputs"):
        head_of(models.build("mlp", 4, 1), "own:Net", 5)
    recipe = transferred(make_recipe, other, "probe", "students.a.model=mlp")
    with pytest.raises(ModelError, match="do not fit Mlp"):
        Student(recipe, 0, classes=4, channels=1, device=torch.device("cpu"))


@pytest.mark.parametrize("name", models.names())
def test_every_built_in_network_has_a_head(name: str) -> None:
    with torch.device("meta"):
        network = models.build(name, 7)
    head = head_of(network, name, 7)
    assert list(network.state_dict())[-2:] == [f"{head}.weight", f"{head}.bias"]


def test_the_example_begins_where_its_first_table_ends() -> None:
    folder = ROOT / "examples" / "transfer"
    source = {job.name: job.recipe for job in jobs_of(load_table(folder / "source.yaml"), folder)}
    for table in ("probe", "finetune"):
        for job in jobs_of(load_table(folder / f"{table}.yaml"), folder):
            for student in job.recipe.students:
                if job.arm == "scratch":
                    assert (student.weights, student.transfer) == (None, None)
                    continue
                first = source[job.name]  # the arm of the same name, and the same seed
                labels = np.asarray(of_classes(open_dataset(first.data.train), first.data.classes).labels)
                step = first.epochs * (len(labels) // first.batch_size)
                path = f"runs/transfer-source/{job.name}/checkpoints/step-{step:08d}/{student.name}.pt"
                assert (student.weights, student.transfer) == (path, table)
    both = [load_recipe(folder / f"{name}.yaml") for name in ("digits-0-4", "digits-5-9")]
    assert not set(both[0].data.classes or ()) & set(both[1].data.classes or ())

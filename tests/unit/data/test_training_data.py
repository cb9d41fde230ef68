"""A recipe applied to its data."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from cohorts import MakeRecipe, write_images

from kdcl_dist.config.rounds import Kind, Round
from kdcl_dist.data.data_warnings import data_warnings
from kdcl_dist.data.loader import Batch
from kdcl_dist.data.probes import first_views, probes
from kdcl_dist.data.training_data import TrainingData
from kdcl_dist.errors import DataError, RecipeError


def assert_same_batch(found: Batch, wanted: Batch) -> None:
    """But for the seconds that the loading took."""
    tensors = zip(found[:-1], wanted[:-1], strict=True)
    assert all(torch.equal(one, other) for one, other in tensors)


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_one_loader_serves_a_whole_run(workers: int, make_recipe: MakeRecipe) -> None:
    """From any round on: the training steps, the held-out and the test samples, in the schedule's order."""
    crop = [{"name": "RandomCrop", "size": 8, "padding": 1}]
    common = f"data.augment={crop}", "data.holdout_per_class=2", "distillation.method=general"
    training_data = TrainingData.open(make_recipe(*common, f"data.loader_workers={workers}"))
    alone = TrainingData.open(make_recipe(*common))
    schedule = training_data.schedule
    for start in (Round(Kind.TRAIN, 0, 1), Round(Kind.EVALUATE, 0, schedule.steps_per_epoch)):
        steps = alone.training_batches(1, start.step)
        found = training_data.batches(1, start)
        for round in schedule.rounds(start):
            if round.kind not in (Kind.TRAIN, Kind.HOLDOUT, Kind.EVALUATE):
                continue
            if round.part == 0 and round.kind is not Kind.TRAIN:
                passing = alone.holdout_batches() if round.kind is Kind.HOLDOUT else alone.test_batches()
            wanted = next(steps if round.kind is Kind.TRAIN else passing)
            assert_same_batch(next(found), wanted)
        assert next(found, None) is None


@pytest.mark.parametrize("replicas", [2, 4, 8])
def test_replicas_split_each_batch_of_their_student(replicas: int, make_recipe: MakeRecipe) -> None:
    training_data = TrainingData.open(make_recipe(f"students.a.replicas={replicas}"))
    whole = TrainingData.open(make_recipe())
    shares = [training_data.training_batches(0, 1, replica) for replica in range(replicas)]
    for batch, *parts in zip(whole.training_batches(0, 1), *shares, strict=True):
        assert torch.equal(batch.ids, torch.cat([part.ids for part in parts]))
        assert torch.equal(batch.inputs, torch.cat([part.inputs for part in parts]))
        assert {len(part.ids) for part in parts} == {16 // replicas}


def test_the_parts_of_a_step_have_its_samples(make_recipe: MakeRecipe) -> None:
    """The same for all students, each of which has an order of its own, and from any step on."""
    whole = list(TrainingData.open(make_recipe()).training_batches(0, 1))
    recipe = make_recipe("accumulate=4", "students.a.replicas=2")
    training_data = TrainingData.open(recipe)
    a0, a1, b = (list(training_data.training_batches(*each)) for each in ((0, 1, 0), (0, 1, 1), (1, 1)))
    of_a = [torch.cat([first.ids, second.ids]) for first, second in zip(a0, a1, strict=True)]
    assert len(of_a) == len(b) == 4 * len(whole)
    assert all(len(ids) == 4 for ids in of_a)
    assert [sorted(ids.tolist()) for ids in of_a] == [sorted(batch.ids.tolist()) for batch in b]
    assert any(not torch.equal(ids, batch.ids) for ids, batch in zip(of_a, b, strict=True))
    for step, batch in enumerate(whole):
        parts = torch.cat(of_a[4 * step : 4 * step + 4])
        assert sorted(parts.tolist()) == sorted(batch.ids.tolist())
    of_rounds = training_data.batches(1, Round(Kind.TRAIN, 0, 1))
    assert all(torch.equal(next(of_rounds).ids, batch.ids) for batch in b[:8])


def test_held_out_samples_are_not_trained_on(make_recipe: MakeRecipe) -> None:
    training_data = TrainingData.open(make_recipe("data.holdout_per_class=3", "batch_size=12"))
    held_out = torch.cat([batch.ids for batch in training_data.holdout_batches()])
    trained = torch.cat([batch.ids for batch in training_data.training_batches(0, 0)])
    assert len(held_out) == 12
    assert sorted({*held_out.tolist(), *trained.tolist()}) == list(range(60))
    assert not {*held_out.tolist()} & {*trained.tolist()}
    tested = torch.cat([batch.ids for batch in training_data.test_batches()])
    assert tested.tolist() == list(range(22))


@pytest.mark.parametrize("own", [True, False])
def test_validation_samples_are_not_trained_on(own: bool, make_recipe: MakeRecipe, tmp_path: Path) -> None:
    """With a set of its own or a share of the training set, and held-out samples beside."""
    val = f"data.val={write_images(tmp_path / 'val.arrow', 20, seed=3)}" if own else "data.val_fraction=0.2"
    recipe = make_recipe(val, "data.holdout_per_class=2", "batch_size=8", "checkpoint.best=loss")
    training_data = TrainingData.open(recipe)
    schedule = training_data.schedule
    assert (schedule.val_batches, schedule.best) == (3 if own else 2, True)
    found: dict[Kind, list[Batch]] = {kind: [] for kind in Kind}
    batches = training_data.batches(0, schedule.first(0))
    for round in schedule.rounds(schedule.first(0)):
        if round.kind not in (Kind.CHECKPOINT, Kind.END):
            found[round.kind].append(next(batches))
    ids = {kind: sorted(torch.cat([each.ids for each in own]).tolist()) for kind, own in found.items() if own}
    assert len(ids[Kind.VALIDATE]) == 2 * (20 if own else 12)
    assert ids[Kind.BEST] == ids[Kind.EVALUATE] == list(range(22))
    held_out = set(training_data.split[1].tolist())
    trained = set(ids[Kind.TRAIN])
    assert not trained & held_out
    if not own:
        validated = set(ids[Kind.VALIDATE])
        assert not validated & (trained | held_out)
        assert sorted([*validated, *map(int, training_data.split[0]), *held_out]) == list(range(60))
    source = training_data.val or training_data.train
    batch = found[Kind.VALIDATE][0]
    expected = torch.stack([source.image(int(id)) for id in batch.ids]).float() / 255
    assert torch.allclose(batch.inputs, (expected - 0.5) / 0.25)
    assert set(training_data.fingerprints) == {"train", "test", *(["val"] if own else [])}


def test_a_validation_set_must_fit(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    path = write_images(tmp_path / "five.arrow", 10, classes=5)
    with pytest.raises(DataError, match=r"^data\.val has 5 classes and 1 channels, data\.train 4 and 1"):
        TrainingData.open(make_recipe(f"data.val={path}"))
    with pytest.raises(DataError, match=r"^data\.val: none\.arrow"):
        TrainingData.open(make_recipe("data.val=none.arrow"))
    with pytest.raises(DataError, match=r"^data\.val_fraction is 0\.01, .* raise it, or set data\.val$"):
        TrainingData.open(make_recipe("data.val_fraction=0.01"))
    with pytest.raises(
        DataError, match=r"data\.holdout_per_class is 12, but class 0 has only 12 training samples"
    ):
        TrainingData.open(make_recipe("data.val_fraction=0.2", "data.holdout_per_class=12"))


def test_data_sets_that_do_not_fit_each_other(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    path = write_images(tmp_path / "five.arrow", 10, classes=5)
    with pytest.raises(DataError, match=r"data\.test has 5 classes and 1 channels, data\.train 4 and 1"):
        TrainingData.open(make_recipe(f"data.test={path}"))
    with pytest.raises(DataError, match=r"^data\.test: .*nowhere\.arrow: no such file"):
        TrainingData.open(make_recipe(f"data.test={tmp_path}/nowhere.arrow"))


@pytest.mark.parametrize(
    ("override", "field"),
    [
        ("data.augment=[{name: NoSuch}]", r"data\.augment: "),
        ("students.b.augment=[{name: NoSuch}]", r"students\.b\.augment: "),
        ("data.test_view=[{name: NoSuch}]", r"data\.test_view: "),
    ],
)
def test_an_impossible_transform_is_named_by_its_field(
    override: str, field: str, make_recipe: MakeRecipe
) -> None:
    with pytest.raises(RecipeError, match=f"^{field}transform 0: 'NoSuch'"):
        TrainingData.open(make_recipe(override))


@pytest.mark.parametrize(
    ("item", "words"),
    [
        (
            {"name": "Grayscale", "num_output_channels": 3},
            r"images of shape \(3, 8, 8\) where the data has 1",
        ),
        ({"name": "Normalize", "mean": [0], "std": [0]}, "a transform fails on sample 0 of shape"),
    ],
)
def test_views_of_other_channels_or_failing_transforms_are_refused(
    item: dict, words: str, make_recipe: MakeRecipe
) -> None:
    with pytest.raises((DataError, RecipeError), match=words):
        first_views(TrainingData.open(make_recipe(f"data.augment=[{item}]")), 0, 2)


def test_a_window_longer_than_an_epoch_is_a_warning(make_recipe: MakeRecipe) -> None:
    long = TrainingData.open(make_recipe("distillation.window=7"))
    assert data_warnings(long) == ["distillation.window: an epoch has 3 steps, so 7 is as much as 'epoch'"]
    assert data_warnings(TrainingData.open(make_recipe("distillation.window=3"))) == []


@pytest.mark.parametrize(
    ("item", "words"),
    [
        ({"name": "own_views:Floats"}, r"data\.augment gives torch\.float32 images with pixels from 0 to"),
        ({"name": "own_views:Last"}, r"data\.augment has shape \(8, 8, 1\), height, width, channels"),
        ({"name": "own_views:Flat"}, r"images of shape \(8, 8\) where the data has 1 channels"),
        ({"name": "own_views:Leaves"}, r"data\.augment: a transform fails .*SystemExit: no licence"),
    ],
)
def test_views_that_would_train_nonsense_are_refused_before_a_start(
    item: dict, words: str, make_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_views.py").write_text(
        "import sys\n"
        "Floats = lambda: lambda x: x.float()\n"
        "Last = lambda: lambda x: x.permute(1, 2, 0)\n"
        "Flat = lambda: lambda x: x[0]\n"
        "Leaves = lambda: lambda x: sys.exit('no licence')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    training_data = TrainingData.open(make_recipe(f"data.augment=[{item}]"))
    with pytest.raises(DataError, match=words):
        data_warnings(training_data)
    other = TrainingData.open(make_recipe(f"data.test_view=[{item}]"))
    with pytest.raises(DataError, match=words.replace("augment", "test_view")):
        data_warnings(other)


def test_all_sets_are_normalised_as_that_of_training(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    """Whatever the file of another set says; so two files of the same images are the same test."""
    training_data = TrainingData.open(make_recipe())
    other = tmp_path / "other.arrow"
    write_images(other, 20, mean=0.1, std=0.7)
    again = tmp_path / "again.arrow"
    write_images(again, 20)
    batches = [
        next(iter(TrainingData.open(make_recipe(f"data.test={path}")).test_batches())).inputs
        for path in (other, again)
    ]
    assert torch.equal(*batches)
    assert training_data.test_views(training_data.test).like is training_data.train


def test_views_that_look_wrong_are_a_warning(make_recipe: MakeRecipe) -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    resized = TrainingData.open(make_recipe("data.augment=[{name: Resize, size: 4}]"))
    assert data_warnings(resized) == [
        "data.augment gives images of shape (1, 4, 4), data.test_view of shape (1, 8, 8)"
    ]
    dark = "data.augment=[{name: ColorJitter, brightness: [0, 0]}]"
    (line,) = data_warnings(TrainingData.open(make_recipe(dark)))
    assert line.startswith("data.augment: the first images have deviation 0 after normalisation")
    assert torch.equal(torch.get_rng_state(), before), "the caller's random numbers stay as they are"


def test_a_single_class_is_refused(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    path = write_images(tmp_path / "one.arrow", 32, classes=1)
    with pytest.raises(DataError, match=r"data\.train has samples of a single class"):
        TrainingData.open(make_recipe(f"data.train={path}", f"data.test={path}"))


@pytest.mark.parametrize("workers", [0, 1])
def test_the_first_batch_is_that_of_the_run(workers: int, make_recipe: MakeRecipe) -> None:
    fields = "students.a.replicas=2", "data.augment=[{name: RandomCrop, size: 8, padding: 1}]"
    training_data = TrainingData.open(make_recipe(*fields, f"data.loader_workers={workers}"))
    alone = TrainingData.open(make_recipe(*fields))
    for replica in (0, 1):
        expected = next(alone.training_batches(0, 0, replica))
        found = training_data.first_batch(0, replica)
        assert_same_batch(found, expected)


@pytest.mark.parametrize(
    ("fields", "sizes"),
    [
        (["batch_size=16"], {"data.test": [16, 6]}),
        (["batch_size=7"], {"data.test": [7, 1]}),
        (["batch_size=6", "students.a.replicas=3"], {"data.test": [2, 1, 2]}),
        (["batch_size=40"], {"data.test": [22]}),
        (
            ["data.holdout_per_class=5", "distillation.method=general"],
            {"data.test": [16, 6], "data.holdout_per_class": [16, 4]},
        ),
    ],
)
def test_probes_have_the_sizes_of_a_worker_s_batches(
    fields: list[str], sizes: dict[str, list[int]], make_recipe: MakeRecipe
) -> None:
    training_data = TrainingData.open(make_recipe(*fields))
    found: dict[str, list[int]] = {}
    for where, images_BCHW in probes(training_data, 0):
        found.setdefault(where.rpartition(" of ")[2], []).append(len(images_BCHW))
    assert found == sizes


def test_probes_show_each_shape_of_the_test_images(make_recipe: MakeRecipe) -> None:
    """A data set may hold images of several sizes, each batch those of one."""
    training_data = TrainingData.open(make_recipe("batch_size=2"))
    sides = {number: 8 + number // 2 % 3 for number in range(22)}

    class Sized:
        classes, channels = training_data.test.classes, 1
        mean, std, labels = (0.5,), (0.25,), training_data.test.labels

        def __len__(self) -> int:
            return 22

        def image(self, index: int) -> torch.Tensor:
            return torch.zeros(1, sides[index], sides[index], dtype=torch.uint8)

    several = TrainingData(training_data.recipe, training_data.train, Sized())
    shapes = [tuple(images.shape) for _, images in probes(several, 0)]
    assert len(set(shapes)) == len({shape[2] for shape in shapes}) > 1
    sides[21] = 99
    with pytest.raises(DataError, match="samples 20 and 21 have shapes"):
        list(probes(several, 0))

"""Data sets, streams and views."""

from __future__ import annotations

import io
import itertools
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from arrow_files import INFO, write_arrow
from cohorts import ROOT, MakeRecipe, write_images
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import v2

from kdcl_dist.config.rounds import Kind, Round
from kdcl_dist.data import sampling
from kdcl_dist.data.dataset import ArrowDataset, Info, fingerprint, open_dataset
from kdcl_dist.data.describe import describe
from kdcl_dist.data.importers.digits import import_digits
from kdcl_dist.data.loader import batches, normalise
from kdcl_dist.data.training_data import TrainingData
from kdcl_dist.data.view_seeds import view_seeds
from kdcl_dist.data.views import Transforms, Views
from kdcl_dist.data.writer import write_dataset
from kdcl_dist.errors import DataError, RecipeError

SETTINGS = settings(max_examples=50, deadline=None, derandomize=True)


def test_the_shipped_digits_are_what_the_importer_writes(tmp_path: Path) -> None:
    for path in import_digits(tmp_path):
        assert path.read_bytes() == (ROOT / "examples" / "data" / path.name).read_bytes()
    train, test = (ArrowDataset(str(tmp_path / f"digits-{part}.arrow")) for part in ("train", "test"))
    assert len(train) + len(test) == 1797
    assert np.bincount(test.labels).min() >= 34
    seen = {train.image(i).numpy().tobytes() for i in range(len(train))}
    assert sum(test.image(i).numpy().tobytes() in seen for i in range(len(test))) == 0
    assert "CC BY 4.0" in dict(describe(train))["license"]


def test_round_trip_and_shards(tmp_path: Path) -> None:
    rows = [(i % 2, bytes([i, 1, 2, 3])) for i in range(5)]
    write_dataset(tmp_path / "b.arrow", rows[3:], INFO)
    write_dataset(tmp_path / "a.arrow", rows[:3], INFO)
    found = ArrowDataset(str(tmp_path))
    assert found.labels.tolist() == [0, 1, 0, 1, 0]
    assert [bytes(found.data(i)) for i in range(5)] == [image for _, image in rows]
    assert found.image(4).tolist() == [[[4, 1], [2, 3]]]
    assert pickle.loads(pickle.dumps(found)).image(4).equal(found.image(4))
    image = found.image(0)
    image += 100
    assert found.image(0)[0, 0, 0] == 0, "an image handed out is a copy"
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("channels", [1, 3])
def test_encoded_images(tmp_path: Path, kind: str, channels: int) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (6, 4), (200, 100, 50)).save(buffer, kind)
    info = Info(("x",), "encoded", channels, None, (0.5,) * channels, (0.5,) * channels)
    write_dataset(tmp_path / "e.arrow", [(0, buffer.getvalue()), (0, b"no image")], info)
    found = ArrowDataset(str(tmp_path / "e.arrow"))
    assert found.image(0).shape == (channels, 4, 6)
    with pytest.raises(DataError, match="row 1"):
        found.image(1)


MEMORY = """
import sys
from pathlib import Path
from kdcl_dist.data.dataset import ArrowDataset

def own_bytes():
    # What no other process can share, unlike clean pages of a mapped file.
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Private_Dirty"))

small, large = sys.argv[1:]
ArrowDataset(small).image(0)  # whatever is allocated once
before = own_bytes()
found = ArrowDataset(large)
assert sum(int(found.image(i).sum()) for i in range(len(found))) == 0
assert "big.arrow" in Path("/proc/self/maps").read_text()
print(own_bytes() - before)
"""


def test_all_processes_share_one_mapping(tmp_path: Path) -> None:
    """Opening and reading a data set takes no memory of its own: the kernel's pages are used."""
    side = 256
    info = Info(("x",), "raw", 1, (1, side, side), (0.5,), (0.5,))
    for name, count in (("small", 1), ("big", 2400)):
        write_dataset(tmp_path / f"{name}.arrow", ((0, bytes(side * side)) for _ in range(count)), info)
    size = (tmp_path / "big.arrow").stat().st_size
    assert size > 150e6
    with (tmp_path / "big.arrow").open("rb") as file:
        os.fsync(file.fileno())  # pages that wait to be written would count as a process's own
    command = [sys.executable, "-c", MEMORY, *(str(tmp_path / f"{n}.arrow") for n in ("small", "big"))]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    assert int(done.stdout) < 0.05 * size


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "no such file"),
        (b"", "not an Arrow IPC file"),
        (b"plain text, no Arrow", "not an Arrow IPC file"),
    ],
)
def test_what_is_no_data_set(tmp_path: Path, content: bytes | None, words: str) -> None:
    path = tmp_path / "d.arrow"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=words) as caught:
        open_dataset(str(path))
    assert "\n" not in str(caught.value)


def test_a_truncated_file_is_recognised_wherever_it_is_cut(tmp_path: Path) -> None:
    whole = write_images(tmp_path / "w.arrow", 20).read_bytes()
    path = tmp_path / "cut.arrow"
    for length in range(0, len(whole), 37):
        path.write_bytes(whole[:length])
        with pytest.raises(DataError, match=r"cut\.arrow"):
            ArrowDataset(str(path))


def test_bad_content_is_named(tmp_path: Path) -> None:
    schema, image = INFO.schema(), b"abcd"

    def refused(words: str, schema: pa.Schema, labels: list[int]) -> None:
        with pytest.raises(DataError, match=words):
            ArrowDataset(write_arrow(tmp_path / "d.arrow", schema, labels, [image] * len(labels)))

    def changed(**fields: object) -> pa.Schema:
        metadata = json.loads(schema.metadata[b"kdcl"]) | fields
        return schema.with_metadata({"kdcl": json.dumps(metadata)})

    refused(r"row 2 is 7, but there are 2 classes", schema, [0, 1, 7])
    refused(r"row 0 is -1", schema, [-1])
    refused("no samples", schema, [])
    refused("no 'kdcl' metadata", schema.remove_metadata(), [0])
    refused("format 9", changed(format=9), [0])
    refused("cannot be read", changed(surprise=1), [0])
    refused("cannot be read", schema.with_metadata({"kdcl": "{"}), [0])
    refused("names a class twice", changed(classes=["x", "x"]), [0])
    refused("columns or metadata", changed(shape=[1, 3, 3]), [0])
    empty = tmp_path / "folder"
    empty.mkdir()
    with pytest.raises(DataError, match=r"no \.arrow file"):
        ArrowDataset(str(empty))


def test_own_data_sets_by_import_string(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_data.py").write_text(
        "import numpy as np, torch\n"
        "class Own:\n"
        "    labels = np.array([0, 1, 1]); classes = ('x', 'y'); channels = 1; mean = (0.5,); std = (0.5,)\n"
        "    def __len__(self): return 3\n"
        "    def image(self, index): return torch.full((1, 8, 8), index, dtype=torch.uint8)\n"
        "class Outside(Own):\n"
        "    labels = np.array([0, 1, 2])\n"
        "def broken(): raise OSError('no disk')\n"
        "def nothing(): return 3\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert len(open_dataset("own_data:Own")) == 3
    assert fingerprint(open_dataset("own_data:Own")) != fingerprint(
        ArrowDataset("examples/data/digits-test.arrow")
    )
    for name, words in (
        ("Outside", "row 2 is 2"),
        ("broken", "no disk"),
        ("nothing", "lacks"),
        ("missing", "no attribute"),
    ):
        with pytest.raises(DataError, match=words):
            open_dataset(f"own_data:{name}")
    with pytest.raises(DataError, match="No module"):
        open_dataset("no_such_module:Own")


# -- streams -------------------------------------------------------------------------------------


def test_streams_are_frozen() -> None:
    """These values are in everyone's results: a change of them needs a very good reason."""
    ids = np.arange(10)
    assert sampling.epoch_steps(ids, 4, 0, 0).tolist() == [[7, 6, 1, 3], [5, 2, 8, 4]]
    assert sampling.own_order(np.array([5, 6, 7, 8]), 1, 0, 3).tolist() == [6, 8, 5, 7]
    assert sampling.student_seed(0, 0, None) == 2918264622725855778
    assert sampling.student_seed(0, 0, 0) == 5949034261645103510
    assert sampling.view_seed(1, 2, 3) == 956993105522498718
    train, held = sampling.split_holdout(np.array([0, 0, 0, 1, 1, 1]), 1, 0)
    assert (train.tolist(), held.tolist()) == ([0, 1, 4, 5], [2, 3])


@SETTINGS
@given(st.integers(1, 200), st.integers(1, 50), st.integers(0, 5), st.integers(0, 5))
def test_an_epoch_takes_each_sample_once_at_most(count: int, batch: int, seed: int, epoch: int) -> None:
    ids = np.arange(count) * 3
    if batch > count:
        with pytest.raises(DataError, match=f"batch_size is {batch}"):
            sampling.epoch_steps(ids, batch, seed, epoch)
        return
    steps = sampling.epoch_steps(ids, batch, seed, epoch)
    assert steps.shape == (count // batch, batch)
    assert len(np.unique(steps)) == steps.size
    assert np.isin(steps, ids).all()
    for student in (1, 2):
        own = sampling.own_order(steps[0], student, epoch, 0)
        assert sorted(own) == sorted(steps[0])
    assert np.concatenate(sampling.batches_of(ids, batch)).tolist() == ids.tolist()


@SETTINGS
@given(st.lists(st.integers(0, 3), min_size=1, max_size=60), st.integers(0, 5))
def test_the_holdout_takes_as_many_of_each_class(labels: list[int], per_class: int) -> None:
    array = np.array(labels)
    if per_class >= np.unique(array, return_counts=True)[1].min():
        with pytest.raises(DataError, match="holdout_per_class"):
            sampling.split_holdout(array, per_class, 0)
        return
    train, held = sampling.split_holdout(array, per_class, 0)
    assert sorted([*train, *held]) == list(range(len(labels)))
    assert all((array[held] == label).sum() == per_class for label in np.unique(array))


def test_students_and_epochs_differ() -> None:
    ids = np.arange(64)
    orders = {tuple(sampling.own_order(ids, s, e, t)) for s in range(3) for e in range(3) for t in range(3)}
    assert len(orders) == 27
    seeds = {sampling.student_seed(0, i, None) for i in range(5)} | {
        sampling.student_seed(0, 0, i) for i in range(5)
    }
    assert len(seeds) == 10


# -- views ---------------------------------------------------------------------------------------

RANDOM = [
    {"name": "RandomAffine", "degrees": 20, "translate": [0.2, 0.2]},
    {"name": "RandomCrop", "size": 8, "padding": 2},
    {"name": "RandomHorizontalFlip"},
    {"name": "RandomErasing", "p": 0.5},
    {"name": "ColorJitter", "brightness": 0.5},
    {"name": "RandAugment"},
    {"name": "RandomResizedCrop", "size": [8, 8], "antialias": True},
]


@pytest.fixture
def images(tmp_path: Path) -> ArrowDataset:
    return ArrowDataset(str(write_images(tmp_path / "i.arrow", 30)))


@pytest.mark.parametrize("item", RANDOM, ids=lambda item: str(item["name"]))
def test_a_view_belongs_to_its_sample(item: dict, images: ArrowDataset) -> None:
    views = Views(images, Transforms([item]), seed=1)
    one = [views[0, i] for i in range(20)]
    torch.rand(7)
    again = [views[0, i] for i in reversed(range(20))][::-1]
    assert all(torch.equal(a, b) for a, b in zip(one, again, strict=True))
    other = Views(images, Transforms([item]), seed=2)
    assert any(not torch.equal(a, other[0, i]) for i, a in enumerate(one))
    assert any(not torch.equal(a, views[1, i]) for i, a in enumerate(one))


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_do_not_change_a_batch(workers: int, images: ArrowDataset) -> None:
    views = Views(images, Transforms(RANDOM[:4]), seed=3)
    schedule = [(epoch, ids) for epoch in range(2) for ids in sampling.batches_of(np.arange(30), 8)]
    inline = list(batches(views, schedule))
    loaded = list(batches(views, schedule, workers=workers, timeout_s=60))
    assert len(inline) == len(loaded) == 8
    for left, right in zip(inline, loaded, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


def test_seeds_of_a_batch_are_those_of_its_samples() -> None:
    ids = np.array([0, 1, 77, 2**31, 2**32 - 1])
    for student, epoch in itertools.product((0, 5, 2**32 - 1, 2**32, 2**63 - 1), (0, 3, 2**33)):
        wanted = [sampling.view_seed(student, epoch, int(i)) for i in ids]
        assert view_seeds(student, epoch, ids) == wanted
    assert view_seeds(1, 2, ids[:0]) == []


PADDINGS = st.sampled_from([None, 0, 3, [1, 2], [0, 1, 2, 3]])


@SETTINGS
@given(
    size=st.tuples(st.integers(1, 8), st.integers(1, 8)),
    padding=PADDINGS,
    crops=st.booleans(),
    flip=st.sampled_from([None, 0.0, 0.5, 1.0]),
    seed=st.integers(0, 2**40),
)
def test_crops_of_whole_batches_are_torchvisions(
    size: tuple[int, int],
    padding: object,
    crops: bool,
    flip: float | None,
    seed: int,
    crop_data: ArrowDataset,
) -> None:
    """The same transforms, called one by one by torchvision on each image, are the reference."""
    calls = [v2.RandomCrop(size, padding=padding)] if crops else []
    calls += [v2.RandomHorizontalFlip(flip)] if flip is not None else []
    items = [{"name": "RandomCrop", "size": list(size), "padding": padding}] if crops else []
    items += [{"name": "RandomHorizontalFlip", "p": flip}] if flip is not None else []
    ids = np.array([3, 0, 2, 4, 3])
    torch.manual_seed(1)
    state = torch.get_rng_state()
    found = Views(crop_data, Transforms(items), seed).batch(1, ids)
    assert torch.equal(torch.get_rng_state(), state), "what others draw is left alone"
    for row, i in enumerate(ids.tolist()):
        torch.manual_seed(sampling.view_seed(seed, 1, i))
        image = crop_data.image(i)
        for call in calls:
            image = call(image)
        assert torch.equal(found[row], image)


@pytest.fixture(scope="module")
def crop_data(tmp_path_factory: pytest.TempPathFactory) -> ArrowDataset:
    """Five images of 3 x 8 x 9 in two files, so that one lies behind the other's end."""
    folder = tmp_path_factory.mktemp("crops")
    rng = np.random.default_rng(0)
    info = Info(("x",), "raw", 3, (3, 8, 9), (0.5,) * 3, (0.5,) * 3)
    for name, count in (("a", 3), ("b", 2)):
        images = rng.integers(1, 256, (count, 3, 8, 9), dtype=np.uint8)
        write_dataset(folder / f"{name}.arrow", ((0, image.tobytes()) for image in images), info)
    return ArrowDataset(str(folder))


@pytest.mark.parametrize(
    "item",
    [
        {"name": "RandomCrop", "size": 4, "fill": 7, "padding": 2},
        {"name": "RandomCrop", "size": 4, "padding": 2, "padding_mode": "reflect"},
        {"name": "RandomCrop", "size": 30, "padding": 2, "pad_if_needed": True},
        {"name": "RandomVerticalFlip"},
    ],
)
def test_other_transforms_go_image_by_image(item: dict, crop_data: ArrowDataset) -> None:
    views = Views(crop_data, Transforms([item]), seed=1)
    ids = np.arange(5)
    assert torch.equal(views.batch(2, ids), torch.stack([views[2, i] for i in range(5)]))


@pytest.mark.parametrize(
    "items",
    [
        [{"name": "RandomResizedCrop", "size": 24}, {"name": "RandomPhotometricDistort"}],
        [{"name": "Resize", "size": [20, 20]}, {"name": "CenterCrop", "size": 16}],
        [{"name": "Resize", "size": [60, 80]}, {"name": "ColorJitter", "contrast": 0.5}],
    ],
)
def test_decoded_images_give_the_same_views_in_either_layout(items: list[dict], tmp_path: Path) -> None:
    """Torchvision's transforms of the same pixels, plane by plane in memory, are the reference."""
    rng, rows = np.random.default_rng(0), []
    for _ in range(12):
        buffer = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (60, 80, 3), dtype=np.uint8)).save(buffer, "JPEG")
        rows.append((0, buffer.getvalue()))
    info = Info(("x",), "encoded", 3, None, (0.5,) * 3, (0.5,) * 3)
    write_dataset(tmp_path / "e.arrow", rows, info)
    dataset = ArrowDataset(str(tmp_path / "e.arrow"))
    found = Views(dataset, Transforms(items), seed=4).batch(0, np.arange(12))
    calls = [getattr(v2, item["name"])(**{k: v for k, v in item.items() if k != "name"}) for item in items]
    for i, (_, data) in enumerate(rows):
        planes = np.ascontiguousarray(np.asarray(Image.open(io.BytesIO(data))).transpose(2, 0, 1))
        torch.manual_seed(sampling.view_seed(4, 0, i))
        image = torch.from_numpy(planes)
        for call in calls:
            image = call(image)
        assert torch.equal(found[i], image)


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
            assert all(torch.equal(a, b) for a, b in zip(next(found), wanted, strict=True))
        assert next(found, None) is None


def test_foreign_transforms_are_seeded_too(
    images: ArrowDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_view.py").write_text(
        "import random, numpy as np\n"
        "def make(scale):\n"
        "    return lambda image: image.float() * 0 + scale * (random.random() + np.random.rand())\n"
        "def bad(): return lambda image: 1 / 0\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    views = Views(images, Transforms([{"name": "own_view:make", "scale": 2}]), seed=1)
    assert torch.equal(views[0, 3], views[0, 3])
    assert not torch.equal(views[0, 3], views[0, 4])
    failing = Views(images, Transforms([{"name": "own_view:bad"}]), seed=1)
    for workers in (0, 1):
        with pytest.raises(DataError, match=r"sample 2 .*ZeroDivisionError") as caught:
            list(batches(failing, [(0, np.array([2]))], workers=workers, timeout_s=60))
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("item", "words"),
    [
        ({"name": "NoSuch"}, "transform 0: 'NoSuch' is neither"),
        ({"name": "functional"}, "is neither"),
        ({"name": "RandomCrop"}, "RandomCrop with"),
        ({"name": "RandomCrop", "size": 8, "colour": 1}, "colour"),
        ({"name": "no_module:x"}, "No module"),
    ],
)
def test_transforms_that_cannot_be_built(item: dict, words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        Transforms([item])


def test_images_of_a_batch_are_of_one_size(tmp_path: Path) -> None:
    info = Info(("x",), "encoded", 1, None, (0.5,), (0.5,))
    rows = []
    for side in (8, 9):
        buffer = io.BytesIO()
        Image.new("L", (side, side)).save(buffer, "PNG")
        rows.append((0, buffer.getvalue()))
    write_dataset(tmp_path / "e.arrow", rows, info)
    views = Views(ArrowDataset(str(tmp_path / "e.arrow")), Transforms([]), seed=0)
    with pytest.raises(DataError, match="samples 0 and 1"):
        list(batches(views, [(0, np.array([0, 1]))]))


def test_normalisation() -> None:
    image = torch.tensor([[[[0, 255]]]], dtype=torch.uint8)
    assert normalise(image, (0.5,), (0.25,)).tolist() == [[[[-2, 2]]]]
    assert normalise(image.double() / 255, (0.5,), (0.25,)).tolist() == [[[[-2, 2]]]]

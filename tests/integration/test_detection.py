"""The detection example: training on Ray Train, AP as pycocotools has it, and every mistake in one line."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import shutil
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from click.testing import CliRunner, Result
from cohorts import ROOT, assert_same
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from ray.train import ControllerError, WorkerGroupError
from rays import own_ray
from torchvision.models import resnet18, resnet34, resnet50

from examples.detection.__main__ import detection
from examples.detection.backbone import IMAGENET, Backbone, read_backbone
from examples.detection.coco import annotation_file, read_annotations, read_split
from examples.detection.compare import make_table
from examples.detection.evaluation import NAMES, average_precision, to_coco
from examples.detection.launch import cause_of, launch, placed
from examples.detection.loading import Images, epoch_steps, load
from examples.detection.model import build_detector
from examples.detection.recipe import DetectionRecipe, load_recipe
from examples.detection.run import Run, load_run, prepare
from examples.detection.shapes import draw_shapes
from examples.detection.training import Worker, gather
from kdcl_dist.errors import DataError, KdclError, RecipeError
from kdcl_dist.exchange.replicas import Replicas
from kdcl_dist.membership.tcp_store import connect_store, host_store
from kdcl_dist.run.metrics import read_metrics
from kdcl_dist.run.record import read_record, update_record
from kdcl_dist.utils.seeding import Purpose, derive

EXAMPLE = ROOT / "examples" / "detection"
TRAIN, VAL = 12, 3
#: NumPy's word to pycocotools.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(detection, [str(argument) for argument in arguments])


@pytest.fixture(scope="session")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A drawn data set, which no test changes."""
    root = tmp_path_factory.mktemp("coco") / "shapes"
    assert run("draw", root, "--train", TRAIN, "--val", VAL).exit_code == 0
    return root


def settings(shapes: Path) -> dict[str, Any]:
    return {
        "name": "tiny",
        "detector": "faster_rcnn",
        "data": {"root": str(shapes)},
        "epochs": 3,
        "workers": 2,
        "images_per_worker": 2,
        "optimizer": {"lr": 0.08},
        "schedule": {"milestones": [2]},
        "warmup_steps": 3,
        "min_size": 64,
        "max_size": 96,
        "proposals": 32,
        "test_every_epochs": 3,
        "wait_s": 200.0,
    }


Recipe = Callable[..., DetectionRecipe]


@pytest.fixture(scope="session")
def recipe_file(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "tiny.yaml"
    path.write_text(yaml.safe_dump(settings(shapes)))
    return path


@pytest.fixture(scope="session")
def make_recipe(recipe_file: Path) -> Recipe:
    """The small recipe; arguments are overrides as `--set` takes them."""
    return lambda *overrides: load_recipe(recipe_file, overrides)


# Training, on two processes of one Ray cluster.


@pytest.fixture(scope="module")
def on_ray() -> Iterator[None]:
    """A cluster of our own, whatever else runs on this machine."""
    import ray

    own_ray(2)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The same backbone twice: as a file, and as a folder of `kdcl export`."""
    folder = tmp_path_factory.mktemp("exports")
    torch.manual_seed(3)
    state = resnet18(num_classes=7).state_dict()
    for name in ("one", "two"):
        (folder / name).mkdir()
        torch.save(state, folder / name / "model.pt")
        (folder / name / "preprocessing.json").write_text(json.dumps({"mean": [0.3] * 3, "std": [0.2] * 3}))
    return folder / "one" / "model.pt", folder / "two"


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def whole(on_ray: None, recipe_file: Path, exports: tuple[Path, Path], storage: Path) -> Path:
    """The folder of a run without a break."""
    result = run(
        "train",
        recipe_file,
        "--set",
        f"backbone={exports[0]}",
        "--storage",
        storage,
        "--name",
        "tiny-vanilla",
    )
    assert result.exit_code == 0, result.output
    assert "epoch 3 of 3: loss" in result.output
    assert "normalised by mean 0.3, 0.3, 0.3 and deviation 0.2, 0.2, 0.2" in result.output
    assert f"{TRAIN} of {TRAIN} images" in result.output
    return storage / "tiny-vanilla"


def check_learned(folder: Path, kinds: set[str]) -> None:
    """The loss fell, AP is above zero, and is what pycocotools alone says of the detections."""
    rows = read_metrics(load_run(str(folder)).folder).to_pylist()
    losses = [row["value"] for row in rows if (row["split"], row["name"]) == ("train", "loss")]
    assert np.mean(losses[-3:]) < 0.8 * np.mean(losses[:3])
    record = read_record(load_run(str(folder)).folder)
    assert record["state"] == "finished"
    assert record["results"].keys() == kinds
    for kind in kinds:
        assert 0 < record["results"][kind]["AP"] <= 100
        assert record["results"][kind] == by_hand(folder / "detections.json", kind, folder)
    found = json.loads((folder / "detections.json").read_text())
    assert {item["image_id"] for item in found} == set(range(1, VAL + 1))
    assert max(Counter(json.dumps(item) for item in found).values()) == 1
    with Image.open(folder / "predictions.png") as picture:
        assert picture.size[1] > VAL * 320


def by_hand(detections: Path, kind: str, folder: Path) -> dict[str, float]:
    """What COCO's own program says: all from files, as its demonstration does it."""
    truth = annotation_file(Path(load_run(str(folder)).recipe.data.root), "val2017")
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(truth))
        content = json.loads(detections.read_text())
        if kind == "segm":
            content = [{name: item[name] for name in item if name != "bbox"} for item in content]
        judge = COCOeval(coco, coco.loadRes(content), kind)
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    return {name: 100 * v if v >= 0 else -1 for name, v in zip(NAMES, judge.stats[:6].tolist(), strict=True)}


def test_faster_rcnn_learns_boxes(whole: Path) -> None:
    check_learned(whole, {"bbox"})


def test_mask_rcnn_learns_masks(on_ray: None, recipe_file: Path, storage: Path, tmp_path: Path) -> None:
    # On one worker, which takes half as long here as two that share two cores.
    more = ["detector=mask_rcnn", "optimizer.lr=0.04", "epochs=4", "test_every_epochs=4", "proposals=16"]
    more += ["workers=1", "images_per_worker=4"]
    sets = [part for item in more for part in ("--set", item)]
    result = run("train", recipe_file, *sets, "--storage", storage, "--name", "masks")
    assert result.exit_code == 0, result.output
    check_learned(storage / "masks", {"bbox", "segm"})
    picture = run("picture", storage / "masks", "--count", "2", "--score", "0.1", "--to", tmp_path / "p.png")
    assert picture.exit_code == 0, picture.output
    with Image.open(tmp_path / "p.png") as image:
        assert 2 * 320 < image.size[1] < 3 * 320


def one_step_in_one_process(made: Run) -> dict[str, torch.Tensor]:
    """A run's first step without its workers: one backbone for all images, then each worker's heads."""
    path = made.folder.local / "checkpoints" / "step-00000000" / "detector.pt"
    split, recipe = read_split(made.data, "train2017", masks=False), made.recipe
    model: Any = build_detector(recipe, 3, Backbone(None, (0.3,) * 3, (0.2,) * 3))
    model.load_state_dict(torch.load(path, weights_only=True)["model"])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.08 * 4 / 32 / 4, momentum=0.9, weight_decay=1e-4)
    places, parts = epoch_steps(split, recipe, 0)[0], []
    assert len(set(split.wide[places])) == 1  # else the workers pad their images to different sizes
    for rank in range(2):
        samples = [Images(split, recipe, 0)[place] for place in places[2 * rank : 2 * rank + 2]]
        torch.manual_seed(derive(recipe.seed, Purpose.STEP, 0, rank))
        images = [sample.image.float() / 255 for sample in samples]
        parts.append((*model.transform(images, [sample.target for sample in samples]), torch.get_rng_state()))
    features = model.backbone(torch.cat([images.tensors for images, _, _ in parts]))
    for rank, (images, targets, state) in enumerate(parts):
        torch.set_rng_state(state)
        own = {name: value[2 * rank : 2 * rank + 2] for name, value in features.items()}
        proposals, first = model.rpn(images, own, targets)
        _, second = model.roi_heads(own, proposals, images.image_sizes, targets)
        loss = sum([*first.values(), *second.values()]) / 2
        loss.backward(retain_graph=True)
    optimizer.step()
    return dict(model.state_dict())


def test_stopped_and_resumed_equals_a_run_without_a_break(
    whole: Path, make_recipe: Recipe, recipe_file: Path, exports: tuple[Path, Path], storage: Path
) -> None:
    """The second arm of a comparison, stopped after a step; the first is finished, and is left as it is."""
    stopped = prepare(
        make_recipe(f"backbone={exports[1]}"), str(storage), "tiny-kdcl", resume=False, say=lambda line: None
    )
    asked = threading.Event()
    asked.set()
    assert not launch(stopped, lambda line: None, lambda *progress: None, asked)
    state = stopped.load()
    assert state.step == 1
    for name, value in one_step_in_one_process(stopped).items():
        assert torch.allclose(state.parts["model"][name], value, atol=1e-5), name
    before = (whole / "run.json").read_bytes()
    result = run("compare", recipe_file, "--vanilla", exports[0], "--kdcl", exports[1], "--storage", storage)
    assert result.exit_code == 0, result.output
    assert "from step 1" in result.output
    assert (whole / "run.json").read_bytes() == before
    states = [load_run(str(folder)).load() for folder in (whole, storage / "tiny-kdcl")]
    assert states[0].step == states[1].step == 9
    assert_same(states[0].parts["model"], states[1].parts["model"])
    tables = [read_metrics(load_run(str(folder)).folder) for folder in (whole, storage / "tiny-kdcl")]
    assert tables[0].equals(tables[1])
    ap = read_record(load_run(str(whole)).folder)["results"]["bbox"]["AP"]
    assert f"| Faster R-CNN, box | {ap:.2f} | {ap:.2f} | +0.00 | 32.2 | 33.1 | +0.9 |" in result.output
    assert (storage / "detection.md").read_text() in result.output


def worker(made: Run) -> Worker:
    """The only worker of a run, in this process."""
    store, _ = host_store("127.0.0.1")
    link = Replicas(store, 0, 1, host="127.0.0.1", device=torch.device("cpu"), limit_s=100)
    deaf: dict[str, Any] = {
        "on_progress": lambda *args: None,
        "say": lambda line: None,
        "asked": lambda: False,
    }
    return Worker(made, link, 0, torch.device("cpu"), **deaf)


def test_a_loss_that_is_not_finite_ends_the_run(make_recipe: Recipe, tmp_path: Path) -> None:
    recipe = make_recipe("workers=1", "optimizer.lr=1e12", "warmup_steps=0")
    made = prepare(recipe, str(tmp_path), "tiny", resume=False, say=lambda line: None)
    with pytest.raises(
        KdclError, match=r"step [123]: the loss is not finite \(.*loss_classifier.*optimizer.lr"
    ):
        worker(made).train()
    assert made.load().step == 0


@pytest.mark.parametrize("loaders", [0, 1])
def test_an_image_that_cannot_be_read(
    shapes: Path, make_recipe: Recipe, tmp_path: Path, loaders: int
) -> None:
    root = tmp_path / "coco"
    shutil.copytree(shapes, root)
    for path in (root / "train2017").iterdir():
        path.write_bytes(path.read_bytes()[:300])
    recipe = make_recipe("workers=1", f"data.root={root}", f"loader_workers={loaders}")
    made = prepare(recipe, str(tmp_path), "tiny", resume=False, say=lambda line: None)
    with pytest.raises(DataError, match=r"image '.*jpg' cannot be read: ValueError: OSError: Truncated"):
        worker(made).train()


def test_the_first_cause_is_told_from_what_followed() -> None:
    cut_off = RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:1")
    mistake = DataError("image 'x.jpg' cannot be read")
    assert cause_of(WorkerGroupError("", {0: cut_off, 1: mistake})) is mistake
    dead = cause_of(WorkerGroupError("", {0: cut_off, 1: OSError("no space left")}))
    assert str(dead) == "the worker of rank 1 failed: OSError: no space left"
    assert "rank 0" in str(cause_of(WorkerGroupError("", {0: cut_off})))
    assert str(cause_of(ControllerError(ValueError("x")))).startswith("Ray Train failed: ControllerError")


# What is learned from.


def test_steps_use_each_image_once_and_keep_wide_and_high_apart(shapes: Path, make_recipe: Recipe) -> None:
    split = read_split(shapes, "train2017", masks=False)
    split.annotated[3] = False
    recipe = make_recipe("images_per_worker=1")
    orders = []
    for epoch in range(2):
        steps = epoch_steps(split, recipe, epoch)
        assert len(steps) == (TRAIN - 1) // 2
        used = np.concatenate(steps).tolist()
        assert len(set(used)) == len(used)
        assert 3 not in used
        assert sum(len(set(split.wide[step])) > 1 for step in steps) <= 1
        assert [step.tolist() for step in epoch_steps(split, recipe, epoch)] == [s.tolist() for s in steps]
        orders.append(used)
    assert orders[0] != orders[1]


def test_targets_are_what_pycocotools_reads(shapes: Path, make_recipe: Recipe) -> None:
    """Masks of polygons and run lengths, and boxes around them, plain and mirrored; crowds left out."""
    split, recipe = read_split(shapes, "train2017", masks=True), make_recipe("detector=mask_rcnn")
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(annotation_file(shapes, "train2017")))
    assert split.skipped == {"crowds": TRAIN // 5}
    mirrored = 0
    for place, image_id in enumerate(split.ids.tolist()):
        wanted = [a for a in coco.imgToAnns[image_id] if not a["iscrowd"]]
        with Image.open(shapes / "train2017" / coco.imgs[image_id]["file_name"]) as image:
            pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
        masks = torch.from_numpy(np.stack([coco.annToMask(a) for a in wanted]))
        sample = Images(split, recipe)[place]
        assert torch.equal(sample.image, pixels)
        assert torch.equal(sample.target["masks"], masks)
        assert [split_id(coco, label) for label in sample.target["labels"]] == [
            a["category_id"] for a in wanted
        ]
        epoch = Images(split, recipe, 0)[place]
        flipped = not torch.equal(epoch.image, pixels)
        mirrored += flipped
        for shown, item in ((sample, masks), (epoch, masks.flip(2) if flipped else masks)):
            assert torch.equal(shown.target["masks"], item)
            around = [coco_mask.toBbox(coco_mask.encode(np.asfortranarray(m.numpy()))) for m in item]
            boxes = shown.target["boxes"].numpy().copy()
            boxes[:, 2:] -= boxes[:, :2]
            assert np.abs(boxes - np.stack(around)).max() < 1.5  # corners lie between pixels
    assert 0 < mirrored < TRAIN


def split_id(coco: COCO, label: torch.Tensor) -> int:
    return sorted(coco.cats)[int(label) - 1]


def test_loading_processes_give_the_same_samples(shapes: Path, make_recipe: Recipe) -> None:
    images = Images(read_split(shapes, "train2017", masks=True), make_recipe("detector=mask_rcnn"), 1)
    batches = [[5, 2], [7, 0], [1, 3]]
    plain, loaded = (list(load(images, batches, workers=workers, timeout_s=60)) for workers in (0, 2))
    for left, right in zip(plain, loaded, strict=True):
        for one, other in zip(left, right, strict=True):
            assert one.number == other.number
            assert_same({"image": one.image} | one.target, {"image": other.image} | other.target)


def test_what_cannot_be_learned_from_is_counted(shapes: Path, tmp_path: Path) -> None:
    root = changed(
        shapes, tmp_path, "train2017", lambda content: content["annotations"][0].update(bbox=[4, 4, 0, 9])
    )
    assert read_split(root, "train2017", masks=False).skipped == {"crowds": TRAIN // 5, "empty boxes": 1}

    def flat(content: Any) -> None:
        content["annotations"][1].update(segmentation=[[1, 1, 2, 2]])
        content["annotations"][2].update(bbox=[500, 500, 10, 10])

    root = changed(shapes, tmp_path / "more", "train2017", flat)
    assert read_split(root, "train2017", masks=True).skipped == {
        "crowds": TRAIN // 5,
        "empty masks": 1,
        "empty boxes": 1,
    }


# The detector.


def test_nothing_is_frozen_and_the_backbone_is_the_export(
    exports: tuple[Path, Path], make_recipe: Recipe
) -> None:
    state = torch.load(exports[0], weights_only=True)
    backbones = [read_backbone(path) for path in exports]
    models = [build_detector(make_recipe(), 3, backbone) for backbone in backbones]
    for model in models:
        assert all(parameter.requires_grad for parameter in model.parameters())
        body = model.backbone.body.state_dict()
        assert_same(body, {name: value for name, value in state.items() if not name.startswith("fc.")})
        assert (model.transform.image_mean, model.transform.image_std) == ([0.3] * 3, [0.2] * 3)
    norms = [m for m in models[0].modules() if "batchnorm" in type(m).__name__.lower()]
    assert {type(m) for m in norms} == {torch.nn.BatchNorm2d}
    assert len(norms) == 20
    assert_same(models[0].state_dict(), models[1].state_dict())


def test_a_backbone_of_safetensors_and_of_a_checkpoint(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    state = resnet18().state_dict()
    save_file(state, tmp_path / "model.safetensors")
    torch.save({"model": state, "step": 3}, tmp_path / "student.pt")
    body = {name: value for name, value in state.items() if not name.startswith("fc.")}
    for name in ("model.safetensors", "student.pt"):
        found = read_backbone(tmp_path / name)
        assert_same(found.state or {}, body)
        assert (found.mean, found.std) == IMAGENET
    assert read_backbone(None) == Backbone(None, *IMAGENET)


def test_learning_rates_are_the_papers() -> None:
    for name in ("faster_rcnn", "mask_rcnn"):
        recipe = load_recipe(EXAMPLE / f"{name}.yaml")
        assert (recipe.detector, recipe.epochs, recipe.images_per_step) == (name, 14, 32)
        assert (recipe.optimizer.momentum, recipe.optimizer.weight_decay) == (0.9, 1e-4)
        rates = [recipe.lr(epoch * 1000 + 999, 1000) for epoch in range(14)]
        assert rates == pytest.approx([0.04] * 9 + [0.004] * 3 + [0.0004] * 2)
        assert recipe.lr(0, 1000) == pytest.approx(0.04 / 501)
        assert not recipe.notes()
    plain = DetectionRecipe.model_validate({"detector": "mask_rcnn", "data": {"root": "x"}, "optimizer": {}})
    assert plain.optimizer == recipe.optimizer
    assert plain.schedule == recipe.schedule
    half = load_recipe(EXAMPLE / "faster_rcnn.yaml", ["workers=4"])
    assert half.lr(999, 1000) == pytest.approx(0.02)
    assert half.notes() == ["optimizer.lr 0.04 is for 32 images a step; with 4 x 4 images it is 0.02"]
    load_recipe(EXAMPLE / "shapes.yaml")


# The evaluator.


def some_detections(shapes: Path) -> list[dict[str, Any]]:
    """Annotations moved about, with scores and some wrong categories, and boxes of nothing."""
    rng = np.random.default_rng(0)
    content = read_annotations(annotation_file(shapes, "train2017"))
    found = []
    for item in content["annotations"]:
        image = content["images"][item["image_id"] - 1]
        x, y, width, height = np.array(item["bbox"]) + rng.normal(0, 3, 4)
        mask = np.zeros((image["height"], image["width"]), np.uint8)
        mask[max(0, int(y)) : int(y + height), max(0, int(x)) : int(x + width)] = 1
        runs = coco_mask.encode(np.asfortranarray(mask))
        found.append(
            {
                "image_id": item["image_id"],
                "category_id": item["category_id"] if rng.random() < 0.8 else 3,
                "score": rng.random(),
                "bbox": [x, y, width, height],
                "segmentation": {"size": runs["size"], "counts": runs["counts"].decode()},
            }
        )
    return found


def test_average_precision_is_that_of_pycocotools(shapes: Path, tmp_path: Path) -> None:
    found, truth = some_detections(shapes), annotation_file(shapes, "train2017")
    judged = average_precision(read_annotations(truth), found, masks=True)
    for kind, field in (("bbox", "bbox"), ("segm", "segmentation")):
        results = tmp_path / f"{kind}.json"
        names = ("image_id", "category_id", "score", field)
        results.write_text(json.dumps([{name: item[name] for name in names} for item in found]))
        with contextlib.redirect_stdout(io.StringIO()):
            coco = COCO(str(truth))
            judge = COCOeval(coco, coco.loadRes(str(results)), kind)
            judge.evaluate()
            judge.accumulate()
            judge.summarize()
        assert 0.05 < judge.stats[0] < 0.95
        for name, value in zip(NAMES, judge.stats[:6], strict=True):
            assert judged[kind][name] == (100 * value if value >= 0 else -1), (kind, name)


def test_average_precision_of_nothing_and_of_everything(shapes: Path) -> None:
    truth = read_annotations(annotation_file(shapes, "train2017"))
    assert average_precision(truth, [], masks=False)["bbox"]["AP"] == 0
    plain = [{k: a[k] for k in ("id", "image_id", "category_id", "bbox")} for a in truth["annotations"]]
    perfect = [item | {"score": 0.9} for item in plain]
    assert average_precision(truth | {"annotations": plain}, perfect, masks=False)["bbox"][
        "AP"
    ] == pytest.approx(100)


def test_average_precision_does_not_depend_on_annotation_ids(shapes: Path) -> None:
    truth, found = read_annotations(annotation_file(shapes, "train2017")), some_detections(shapes)
    expected = average_precision(truth, found, masks=True)
    for ids in (itertools.count(0), itertools.count(-3), itertools.count(10**12, -7)):
        items = [item | {"id": number} for item, number in zip(truth["annotations"], ids, strict=False)]
        assert average_precision(truth | {"annotations": items}, found, masks=True) == expected


def test_outputs_in_cocos_format() -> None:
    output = {
        "boxes": torch.tensor([[10.0, 20.0, 30.0, 60.0]]),
        "labels": torch.tensor([2]),
        "scores": torch.tensor([0.5]),
        "masks": torch.zeros(1, 1, 70, 80),
    }
    output["masks"][0, 0, 20:60, 10:30] = 0.5
    (found,) = to_coco(output, 7, [1, 3, 4])
    assert (found["image_id"], found["category_id"], found["score"]) == (7, 3, 0.5)
    assert found["bbox"] == [10, 20, 20, 40]
    assert coco_mask.toBbox(found["segmentation"]).tolist() == [10, 20, 20, 40]
    assert output["boxes"].tolist() == [[10, 20, 30, 60]]


def test_detections_of_all_workers_come_together() -> None:
    server, endpoint = host_store("127.0.0.1")
    own = [b'[{"image_id": 1}]', b"[]", bytes(range(256))]
    got: list[Any] = [None] * 3

    def work(rank: int) -> None:
        store = server if rank == 0 else connect_store(endpoint, 100)
        link = Replicas(store, rank, 3, host="127.0.0.1", device=torch.device("cpu"), limit_s=100)
        got[rank] = gather(own[rank], link, torch.device("cpu"))
        link.close()

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(200)
    assert got == [own] * 3


# Mistakes.


def changed(shapes: Path, folder: Path, split: str, change: Callable[[Any], object]) -> Path:
    """A copy of the drawn data with changed annotations."""
    root = folder / "coco"
    shutil.copytree(shapes, root)
    path = annotation_file(root, split)
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    return root


def assert_one_line(result: Result, *words: str) -> None:
    """A user's mistake: exit code 2 and one line with those words."""
    assert result.exit_code == 2, result.output
    lines = [line for line in result.output.splitlines() if line.startswith("kdcl: ")]
    assert len(lines) == 1, result.output
    assert lines[0].startswith("kdcl: error: ")
    assert "Traceback" not in result.output
    assert all(word in lines[0] for word in words), lines[0]


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("epohcs=3", ["epohcs", "did you mean 'epochs'"]),
        ("detector=yolo", ["detector", "'yolo'"]),
        ("workers=0", ["workers", "0"]),
        ("min_size=2000", ["min_size: 2000 is more than max_size"]),
        ("schedule.warmup_epochs=1", ["warmup_steps"]),
        ("resources.gpu=0.5", ["resources.gpu: 0.5", "share"]),
        ("optimizer.lr=-1.0", ["optimizer.lr", "-1.0"]),
        ("data.root=none", ["data.root", "instances_train2017.json"]),
        ("data.val=val2014", ["instances_val2014.json"]),
        ("images_per_worker=50", ["12 images", "100", "images_per_worker"]),
        ("backbone=none.pt", ["none.pt", "cannot be read", "FileNotFoundError"]),
        ("backbone=README.md", ["README.md", "damaged"]),
        ("backbone=examples", ["model.pt", "kdcl export"]),
    ],
)
def test_mistakes_in_a_recipe(
    recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, override: str, words: list[str]
) -> None:
    monkeypatch.chdir(ROOT)
    result = run("train", recipe_file, "--set", override, "--storage", tmp_path / "runs")
    assert_one_line(result, *words)
    assert not (tmp_path / "runs").exists()


def first(part: str, **fields: Any) -> Callable[[Any], None]:
    return lambda content: content[part][0].update(fields)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda content: content.pop("categories"), ["no list of categories"]),
        (lambda content: content["categories"].clear(), ["categories is empty"]),
        (lambda content: content["categories"].pop(), ["annotation", "category_id is", "no category has"]),
        (lambda content: content["images"].clear(), ["images is empty"]),
        (lambda content: content.update(annotations={}), ["no list of annotations"]),
        (first("annotations", image_id=999), ["annotation 1", "image_id is 999", "no image has"]),
        (first("annotations", category_id=2), ["annotation 1", "category_id is 2"]),
        (first("annotations", id=2), ["two have the id 2"]),
        (first("annotations", id="a"), ["annotation", "'a'"]),
        (first("annotations", bbox=[1, 2, 3]), ["annotation 1", "bbox is [1, 2, 3]"]),
        (first("annotations", bbox=[1, 2, 3, float("nan")]), ["bbox is [1, 2, 3, nan]"]),
        (first("annotations", iscrowd="0"), ["annotation 1", "iscrowd is '0'", "0 or 1"]),
        (first("annotations", ignore="false"), ["annotation 1", "ignore is 'false'", "0 or 1"]),
        (first("annotations", area="2500"), ["annotation 1", "area is '2500'", "a number"]),
        (first("annotations", segmentation=None), ["segmentation is None", "masks"]),
        (first("annotations", segmentation=[["x"]]), ["segmentation is [['x']]"]),
        (
            first("annotations", segmentation={"size": [96, 128], "counts": [5]}),
            ["segmentation", "run lengths"],
        ),
        (first("images", file_name="none.jpg"), ["1 of 12 images are missing", "none.jpg"]),
        (first("images", width="x"), ["image 1", "width is 'x'"]),
        (lambda content: content["images"][0].pop("file_name"), ["image 1", "file_name is None"]),
        (
            lambda content: content["images"].append(dict(content["images"][0])),
            ["two have the id 1 as image"],
        ),
        (first("categories", name="ball"), ["different categories", "ball"]),
    ],
)
def test_mistakes_in_annotations(
    shapes: Path, recipe_file: Path, tmp_path: Path, change: Callable[[Any], object], words: list[str]
) -> None:
    root = changed(shapes, tmp_path, "train2017", change)
    more = ["--set", f"data.root={root}", "--set", "detector=mask_rcnn"]
    result = run("train", recipe_file, *more, "--storage", tmp_path / "runs")
    assert_one_line(result, *words)


@pytest.mark.parametrize("content", [b"", b'{"images": [', b"\xff\xfe\x00", b"[1, 2]", b"[" * 100_000])
def test_damaged_annotations(shapes: Path, recipe_file: Path, tmp_path: Path, content: bytes) -> None:
    root = changed(shapes, tmp_path, "train2017", lambda content: None)
    annotation_file(root, "val2017").write_bytes(content)
    result = run("train", recipe_file, "--set", f"data.root={root}", "--storage", tmp_path / "runs")
    assert_one_line(result, "instances_val2017.json")


def test_images_without_a_box_to_find(shapes: Path, recipe_file: Path, tmp_path: Path) -> None:
    root = changed(shapes, tmp_path, "val2017", lambda content: content["annotations"].clear())
    result = run("train", recipe_file, "--set", f"data.root={root}", "--storage", tmp_path / "runs")
    assert_one_line(result, "val2017", "no image has a box")


def test_images_of_another_size_than_annotated(shapes: Path, make_recipe: Recipe, tmp_path: Path) -> None:
    root = changed(shapes, tmp_path, "train2017", first("images", width=100))
    images = Images(read_split(root, "train2017", masks=False), make_recipe())
    with pytest.raises(DataError, match="is 128x96, but annotated as 100x96"):
        images[0]


def grey(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return state | {"conv1.weight": torch.zeros(64, 1, 7, 7)}


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: resnet34().state_dict(), ["not a ResNet-18", "it has layer1.2.conv1.weight", "more"]),
        (lambda: resnet50().state_dict(), ["not a ResNet-18", "conv3"]),
        (lambda: {"layers.0.weight": torch.zeros(2)}, ["it lacks conv1.weight", "more"]),
        (
            lambda: grey(resnet18().state_dict()),
            ["conv1.weight has shape (64, 1, 7, 7) instead of (64, 3, 7, 7)"],
        ),
        (
            lambda: resnet18().state_dict() | {"bn1.bias": torch.full((64,), torch.nan)},
            ["bn1.bias", "not finite"],
        ),
        (lambda: {"conv1.weight": 3}, ["not a state_dict"]),
        (lambda: [1, 2], ["not a state_dict"]),
        (lambda: {"model": Path("x")}, ["more than tensors"]),
    ],
)
def test_backbones_that_do_not_fit(
    recipe_file: Path, tmp_path: Path, make: Callable[[], Any], words: list[str]
) -> None:
    path = tmp_path / "weights.pt"
    torch.save(make(), path)
    result = run("train", recipe_file, "--set", f"backbone={path}", "--storage", tmp_path / "runs")
    assert_one_line(result, "weights.pt", *words)


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "{}", '{"mean": [1, 2], "std": [1, 1, 1]}', '{"mean": [1, 1, 1], "std": [1, 0, 1]}'],
)
def test_damaged_preprocessing(
    exports: tuple[Path, Path], tmp_path: Path, recipe_file: Path, content: str
) -> None:
    folder = tmp_path / "export"
    shutil.copytree(exports[1], folder)
    (folder / "preprocessing.json").write_text(content)
    result = run("train", recipe_file, "--set", f"backbone={folder}", "--storage", tmp_path / "runs")
    assert_one_line(result, "preprocessing.json")


def test_without_pycocotools(recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("pycocotools", "pycocotools.mask"):
        monkeypatch.setitem(__import__("sys").modules, name, None)
    assert_one_line(run("train", recipe_file, "--storage", tmp_path), "pycocotools", "kdcl_dist[detection]")


def test_mistakes_about_runs(shapes: Path, recipe_file: Path, make_recipe: Recipe, tmp_path: Path) -> None:
    storage = tmp_path / "runs"
    result = run("train", recipe_file, "--storage", storage, "--resume")
    assert_one_line(result, "nothing to resume", "--name")
    assert_one_line(run("train", recipe_file, "--storage", storage, "--name", "../up"), "--name", "letters")
    prepare(make_recipe(), str(storage), "tiny", resume=False, say=lambda line: None)
    assert_one_line(run("train", recipe_file, "--storage", storage), "exists", "--resume")
    changed = run("train", recipe_file, "--set", "epochs=9", "--storage", storage, "--resume")
    assert_one_line(changed, "another recipe", "epochs: 3 -> 9")
    one = ["--vanilla", storage / "tiny", "--kdcl", storage / "tiny"]
    assert_one_line(run("table", *one), "is not finished")
    assert_one_line(run("table", *one, "--kdcl", "more"), "--vanilla is given 1 times and --kdcl 2 times")
    assert_one_line(run("picture", tmp_path), "not a run folder")
    assert_one_line(run("draw", shapes), "exists already")
    twice = run("compare", recipe_file, recipe_file, "--vanilla", "a", "--kdcl", "b", "--storage", storage)
    assert_one_line(twice, "names must differ")
    part = next((storage / "tiny" / "checkpoints").glob("*/detector.pt"))
    part.write_bytes(part.read_bytes()[:1000])
    assert_one_line(run("picture", storage / "tiny"), "no complete checkpoint")


def test_a_cluster_that_is_too_small(on_ray: None, recipe_file: Path, tmp_path: Path) -> None:
    many = run("train", recipe_file, "--set", "resources.cpu=500", "--storage", tmp_path)
    assert_one_line(many, "2 workers need 500 CPU each", "resources.cpu")
    gpu = run("train", recipe_file, "--set", "resources.gpu=1", "--storage", tmp_path)
    if not torch.cuda.is_available():
        assert_one_line(gpu, "2 workers need 1 GPU each", "has 0")
    assert not (tmp_path / "tiny").exists()


@pytest.mark.parametrize(
    ("stated", "count", "gpu", "lines"),
    [("auto", 0, 0, 0), ("auto", 1, 0, 1), ("auto", 2, 1, 0), ("0", 4, 0, 0), ("1", 0, 1, 0)],
)
def test_each_worker_has_a_gpu_or_none_has(
    make_recipe: Recipe, monkeypatch: pytest.MonkeyPatch, stated: str, count: int, gpu: int, lines: int
) -> None:
    monkeypatch.setattr("ray.cluster_resources", lambda: {"CPU": 8.0, "GPU": float(count)})
    said: list[str] = []
    assert placed(make_recipe(f"resources.gpu={stated}"), said.append).resources.gpu == gpu
    assert len(said) == lines


def test_arms_that_differ_in_more_than_their_backbone(make_recipe: Recipe, tmp_path: Path) -> None:
    runs = []
    for name, change in (("a", "seed=1"), ("b", "seed=2")):
        made = prepare(make_recipe(change), str(tmp_path), name, resume=False, say=lambda line: None)
        update_record(made.folder, state="finished", results={"bbox": {"AP": 1.0}})
        runs.append(made.folder.uri)
    with pytest.raises(RecipeError, match="seed: 1 -> 2"):
        make_table([runs])


def test_drawn_data_are_the_same_each_time(shapes: Path, tmp_path: Path) -> None:
    draw_shapes(tmp_path / "again", train=TRAIN, val=VAL)
    files = sorted(path.relative_to(shapes) for path in shapes.rglob("*") if path.is_file())
    assert len(files) == TRAIN + VAL + 2
    for path in files:
        assert (shapes / path).read_bytes() == (tmp_path / "again" / path).read_bytes()

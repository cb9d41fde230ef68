"""`kdcl export` and `kdcl predict`: what is written, what it gives, and every mistake in one clear line."""

from __future__ import annotations

import csv
import errno
import io
import json
import os
import pickle
import re
import shutil
import threading
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import exporting
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from click.testing import CliRunner, Result
from cohorts import Cohort, weights
from commands import assert_one_line
from PIL import Image
from scipy import stats

from kdcl_dist.cli import kdcl
from kdcl_dist.cli.export import KINDS
from kdcl_dist.config.recipe_file import parse_recipe
from kdcl_dist.data.dataset import Info
from kdcl_dist.data.writer import write_dataset
from kdcl_dist.evaluation import Trained
from kdcl_dist.export import formats, writing
from kdcl_dist.export.prediction import Export
from kdcl_dist.export.preprocessing import digest
from kdcl_dist.run.metrics import read_metrics
from kdcl_dist.run.prepare import prepare
from kdcl_dist.run.record import read_record, update_record
from kdcl_dist.run.run import Run
from kdcl_dist.run.storage import Folder

CLASSES = ("cat", "dog", "eel", "fox")


def run(*arguments: object) -> Result:
    return CliRunner().invoke(kdcl, [str(argument) for argument in arguments])


def draw(rng: np.random.Generator, label: int) -> bytes:
    """A PNG of its own size, a class a colour."""
    height, width = rng.integers(10, 20, 2)
    pixels = rng.integers(0, 60, (height, width, 3)) + 60 * np.eye(3, dtype=int)[label % 3] * (1 + label // 3)
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file := io.BytesIO(), "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of PNG files of different sizes, and its test images as files beside."""
    folder = tmp_path_factory.mktemp("pictures")
    info = Info(CLASSES, "encoded", 3, None, (0.4, 0.45, 0.5), (0.2, 0.25, 0.3), "drawn here", "CC0")
    rng = np.random.default_rng(0)
    for part, count in (("train", 48), ("test", 23)):
        files = [(number % 4, draw(rng, number % 4)) for number in range(count)]
        write_dataset(folder / f"{part}.arrow", files, info)
    (folder / "files" / "more").mkdir(parents=True)
    for number, (_, data) in enumerate(files):
        (folder / "files" / ("more" if number > 20 else ".") / f"{number:02}.png").write_bytes(data)
    return folder


@pytest.fixture(scope="module")
def trained(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of two epochs whose test view resizes and crops."""
    recipe = parse_recipe(f"""
        name: pictures
        epochs: 2
        batch_size: 16
        data:
          train: {pictures}/train.arrow
          test: {pictures}/test.arrow
          augment: [{{name: RandomResizedCrop, size: 8}}]
          test_view: [{{name: Resize, size: [12, 12]}}, {{name: CenterCrop, size: 8}}]
        students:
          - {{name: a, model: cnn_small}}
          - {{name: b, model: nets:Dropout}}
        limits: {{startup_s: 200, step_s: 30}}
    """)
    torch.set_num_threads(1)
    made = prepare(recipe, str(tmp_path_factory.mktemp("runs")), "arm-seed0", resume=False, warn=print)
    assert not Cohort(made).train().errors
    return made


@pytest.fixture(scope="module")
def exports(trained: Run, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Student a in each format."""
    folder = tmp_path_factory.mktemp("exports")
    for kind in KINDS:
        arguments = ("--student", "a", "--format", kind, "--to", folder / kind)
        result = run("export", trained.folder.local, *arguments)
        assert (result.exit_code, result.output) == (0, f"{folder / kind}\n")
    return {kind: folder / kind for kind in KINDS}


def test_what_is_written(trained: Run, exports: dict[str, Path]) -> None:
    assert list(formats.FORMATS) == KINDS
    for kind, folder in exports.items():
        weighs = {"model.py"} if kind in ("state_dict", "safetensors") else set()
        file = formats.FORMATS[kind].file  # type: ignore[index]
        assert {path.name for path in folder.iterdir()} == {"README.md", "preprocessing.json", file} | weighs
        found = exporting.description(folder)
        assert (found["model"], found["kind"], found["student"], found["step"]) == ("cnn_small", kind, "a", 6)
        assert (found["input_shape"], found["colours"], found["layout"]) == ([3, 8, 8], "RGB", "NCHW")
        assert (found["mean"], found["std"]) == ([0.4, 0.45, 0.5], [0.2, 0.25, 0.3])
        assert found["classes"] == list(CLASSES)
        assert found["test_view"] == [
            {"name": "Resize", "size": [12, 12]},
            {"name": "CenterCrop", "size": 8},
        ]
    state = torch.load(exports["state_dict"] / "model.pt", weights_only=True)
    expected = weights(trained.folder, 6, "a")
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], expected[name]) for name in state)


def test_the_card(trained: Run, exports: dict[str, Path]) -> None:
    card = (exports["onnx"] / "README.md").read_text()
    for name, values in read_record(trained.folder)["results"].items():
        line = next(line for line in card.splitlines() if line.replace("*", "").startswith(f"| {name} |"))
        interval = stats.binomtest(round(23 * values["top1"]), 23).proportion_ci(method="wilson")
        shown = f"{100 * values['top1']:.2f} [{100 * interval.low:.2f}, {100 * interval.high:.2f}]"
        assert shown in line
        assert f"| {values['loss']:.4f} |" in line
    for words in (
        "epoch 2 of 2",
        "drawn here",
        "CC0",
        "CVPR 2020",
        "Resize(size=[12, 12])",
        "method: linear",
    ):
        assert words in card, words
    assert "Over the" not in card  # there is one seed


def test_the_card_has_the_seeds_of_a_table(trained: Run, tmp_path: Path) -> None:
    """Runs of `kdcl compare`: other seeds of the arm count; other arms or recipes, or failed runs, do not."""
    assert trained.folder.local is not None
    others = [("arm-seed0", 0, 0.5), ("arm-seed1", 1, 0.6), ("arm-seed2", 2, 0.7), ("else-seed3", 3, 0.1)]
    for name, seed, top1 in [*others, ("arm-seed4", 4, 0.1), ("arm-seed5", 5, 0.1)]:
        shutil.copytree(trained.folder.local, tmp_path / name)
        path = tmp_path / name / "recipe.yaml"
        text = path.read_text().replace("seed: 0\n", f"seed: {seed}\n", 1)
        path.write_text(text if seed != 4 else text.replace("temperature: 2.0", "temperature: 3.0"))
        state = "failed" if seed == 5 else "finished"
        results = {"a": {"top1": top1, "top5": 1.0, "loss": 1.0}}
        update_record(Folder(str(tmp_path / name)), state=state, results=results)
    uri = (tmp_path / "arm-seed0").as_uri()  # a URI, as of other storage
    assert run("export", uri, "--student", "a", "--to", tmp_path / "out").exit_code == 0
    half = stats.t.ppf(0.975, 2) * 10 / np.sqrt(3)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "Over the 3 seeds" in card
    assert f"top-1 of a is 60.00 ± {half:.2f} %" in card


def test_logits_are_those_of_an_evaluation(trained: Run, exports: dict[str, Path], pictures: Path) -> None:
    known = Trained.load(trained.folder.uri, device="cpu", warn=print)
    expected = torch.cat(
        [known.students[0].predict(batch.images) for batch in known.training_data.test_batches()]
    )
    files = sorted((pictures / "files").rglob("*.png"), key=lambda path: path.name)
    for kind, folder in exports.items():
        export = Export.read(folder)
        found = export.logits(export.normalised(torch.stack(list(export.views(files)))))  # type: ignore[arg-type]
        assert torch.allclose(found, expected, rtol=0, atol=0 if kind in KINDS[:2] else 1e-5), kind
    losses = F.cross_entropy(expected, torch.from_numpy(np.asarray(known.training_data.test.labels)))
    assert float(losses) == pytest.approx(read_record(trained.folder)["results"]["a"]["loss"], rel=1e-6)


def test_predictions_of_a_folder(trained: Run, exports: dict[str, Path], pictures: Path) -> None:
    known = Trained.load(trained.folder.uri, device="cpu", warn=print)
    logits = torch.cat(
        [known.students[0].predict(batch.images) for batch in known.training_data.test_batches()]
    )
    shares = F.softmax(logits.double(), dim=1).numpy()
    for kind, folder in exports.items():
        result = run("predict", folder, pictures / "files", "--top", 3, "--csv")
        assert result.exit_code == 0, result.output
        rows = list(csv.DictReader(io.StringIO(result.stdout)))
        assert len(rows) == 23 * 3
        for row in rows:
            number = int(Path(row["image"]).stem)
            label = CLASSES.index(row["class"])
            assert float(row["probability"]) == pytest.approx(shares[number, label], rel=1e-4), kind
            assert (shares[number] > shares[number, label]).sum() == int(row["rank"]) - 1
        assert [row["image"] for row in rows[::3]] == [
            str(path) for path in sorted((pictures / "files").rglob("*.png"))
        ]
    one = pictures / "files" / "03.png"
    lines = run("predict", exports["onnx"], one).output.splitlines()
    assert len(lines) == 4  # no more classes than there are
    best = int(shares[3].argmax())
    assert lines[0].split() == [str(one), CLASSES[best], f"{100 * shares[3, best]:.2f}", "%"]
    assert lines[1].split()[0] in CLASSES


def test_which_checkpoint(trained: Run, tmp_path: Path) -> None:
    for option, step in ((("--epoch", 1), 3), (("--last",), 6), ((), 6)):
        assert (
            run("export", trained.folder.local, "--student", "b", *option, "--to", tmp_path / "x").exit_code
            == 0
        )
        assert exporting.description(tmp_path / "x")["step"] == step
        state = torch.load(tmp_path / "x" / "model.pt", weights_only=True)
        expected = weights(trained.folder, step, "b")
        assert all(torch.equal(state[name], expected[name]) for name in expected)
        recorded = read_metrics(trained.folder).to_pylist()
        (loss,) = (
            row["value"]
            for row in recorded
            if (row["student"], row["split"], row["name"]) == ("b", "test", "loss")
            and row["epoch"] == step // 3 - 1
        )
        card = (tmp_path / "x" / "README.md").read_text()
        assert f"epoch {step // 3} of 2" in card
        assert f"{loss:.4f}" in card
        # Who has that module can load it.
        assert "from nets import Dropout\n\nnetwork = Dropout(num_classes=4, in_channels=3)\n" in card
        assert not (tmp_path / "x" / "model.py").exists()
        assert run("predict", tmp_path / "x", trained.folder.local).exit_code == 2
        shutil.rmtree(tmp_path / "x")


def test_a_run_that_was_stopped_within_an_epoch(trained: Run, tmp_path: Path) -> None:
    recipe = trained.recipe.model_copy(update={"name": "stopped"})
    made = prepare(recipe, str(tmp_path), "stopped", resume=False, warn=print)
    calls = iter([False, True])
    assert not Cohort(made).train(stop=lambda: next(calls, True)).errors
    assert run("export", tmp_path / "stopped", "--student", "a", "--to", tmp_path / "x").exit_code == 0
    card = (tmp_path / "x" / "README.md").read_text()
    assert "epoch 0 of 2 and 2 steps" in card
    assert "no test results for this checkpoint" in card
    last = run("export", tmp_path / "stopped", "--student", "a", "--last", "--to", tmp_path / "y")
    assert_one_line(last, "--last", "no checkpoint of epoch 2", "none at the end of an epoch")


@pytest.fixture
def broken(trained: Run, tmp_path: Path) -> Callable[[str], Path]:
    """A copy of the run with something wrong."""
    folder = tmp_path / "broken"

    def manifests(change: Callable[[dict], None]) -> None:
        for path in folder.glob("checkpoints/*/manifest.json"):
            content = json.loads(path.read_text())
            change(content)
            path.write_text(json.dumps(content))

    def make(what: str) -> Path:
        assert trained.folder.local is not None
        shutil.copytree(trained.folder.local, folder)
        recipe = folder / "recipe.yaml"
        if what == "format":
            manifests(lambda content: content.update(format=2))
        elif what == "lost":
            manifests(lambda content: content["parts"]["a"].update(step=3))
        elif what == "parts":
            for path in folder.glob("checkpoints/*/a.pt"):
                path.write_bytes(path.read_bytes()[:-1])
        elif what == "model":
            recipe.write_text(recipe.read_text().replace("cnn_small", "cnn_medium"))
        elif what == "gone":
            recipe.write_text(recipe.read_text().replace("nets:Dropout", "no_such_nets:Dropout"))
        elif what == "data":
            recipe.write_text(recipe.read_text().replace("train.arrow", "nowhere.arrow"))
        elif what == "restless":
            recipe.write_text(recipe.read_text().replace("nets:Dropout", "nets:Restless"))
        return folder

    return make


def test_a_student_that_the_run_lost_is_as_it_was_last(broken: Callable[[str], Path], tmp_path: Path) -> None:
    result = run("export", broken("lost"), "--student", "a", "--to", tmp_path / "x")
    assert result.exit_code == 0, result.output
    assert exporting.description(tmp_path / "x")["step"] == 3
    assert "epoch 1 of 2" in (tmp_path / "x" / "README.md").read_text()


@pytest.mark.parametrize(
    ("what", "arguments", "words"),
    [
        ("", ["--student", "c"], ["--student 'c'", "no such student", "a, b"]),
        ("", ["--student", "a", "--epoch", "7"], ["--epoch 7", "epochs 1, 2", "checkpoint.keep"]),
        ("format", ["--student", "a", "--epoch", "1"], ["epoch 1", "format 2", "reads format 1"]),
        ("format", ["--student", "a"], ["no complete checkpoint"]),
        ("parts", ["--student", "a", "--last"], ["--last", "a.pt is damaged"]),
        ("model", ["--student", "a"], ["student 'a'", "does not fit", "cnn_medium", "recipe.yaml"]),
        ("gone", ["--student", "b"], ["no_such_nets"]),
        ("data", ["--student", "a"], ["nowhere.arrow", "no such file"]),
        ("", ["--student", "a", "--format", "onnx", "--to", "{run}"], ["exists already"]),
        ("", ["--student", "a", "--to", "{run}/recipe.yaml/x"], ["cannot be written"]),
        ("", ["--student", "a", "--to", "s3://bucket/x"], ["--to", "s3://bucket/x", "this machine"]),
    ],
)
def test_mistakes_in_an_export(
    broken: Callable[[str], Path], tmp_path: Path, what: str, arguments: list[str], words: Sequence[str]
) -> None:
    folder = broken(what)
    before = sorted(tmp_path.rglob("*"))
    arguments = [argument.replace("{run}", str(folder)) for argument in arguments]
    to = [] if "--to" in arguments else ["--to", str(tmp_path / "out")]
    result = run("export", folder, *arguments, *to)
    assert_one_line(result, *words)
    assert sorted(tmp_path.rglob("*")) == before


def test_mistakes_in_options(tmp_path: Path) -> None:
    for arguments in (["--epoch", 1, "--last"], ["--epoch", 0], ["--format", "keras"]):
        assert run("export", tmp_path, "--student", "a", *arguments).exit_code == 2
    assert run("export", tmp_path).exit_code == 2
    assert_one_line(run("export", tmp_path, "--student", "a"), "not a run folder")


@pytest.mark.parametrize(
    ("kind", "name"), [("onnx", "onnxscript"), ("onnx", "onnxruntime"), ("safetensors", "safetensors")]
)
def test_a_missing_library_is_asked_for_by_name(
    trained: Run,
    exports: dict[str, Path],
    pictures: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    name: str,
) -> None:
    real = formats.importlib.util.find_spec
    monkeypatch.setattr(
        formats.importlib.util, "find_spec", lambda module: None if module == name else real(module)
    )
    arguments = ("--student", "a", "--format", kind, "--to", tmp_path / "x")
    assert_one_line(run("export", trained.folder.local, *arguments), name, "kdcl_dist[export]")
    assert not list(tmp_path.iterdir())
    if name != "onnxscript":
        assert_one_line(run("predict", exports[kind], pictures / "files"), name, "kdcl_dist[export]")


def test_nothing_is_left_of_an_export_that_fails(
    trained: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ("--student", "a", "--to", tmp_path / "x")

    def stop(*_: object) -> str:
        assert (tmp_path / "x.part" / "model.pt").exists()
        raise KeyboardInterrupt

    def full(*_: object) -> str:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(writing, "card", stop)
        assert run("export", trained.folder.local, *arguments).exit_code == 130
    assert not list(tmp_path.iterdir())
    with monkeypatch.context() as patch:
        patch.setattr(writing, "card", full)
        assert_one_line(run("export", trained.folder.local, *arguments), "cannot be written", "No space left")
    assert not list(tmp_path.iterdir())
    network = exporting.random_network("nets:Restless", 4, 1, 8)
    source = exporting.source_of("nets:Restless", network, tmp_path, channels=1, size=8)
    monkeypatch.setattr(writing.Source, "load", lambda *_, **__: source)
    assert_one_line(run("export", "any", *arguments), "gives other logits", "random numbers")
    assert not (tmp_path / "x").exists()


def spoilt(export: Path, folder: Path, what: str) -> Path:
    """A copy of an export with something wrong."""
    shutil.copytree(export, folder)
    path = folder / "preprocessing.json"
    content = json.loads(path.read_text())
    weights = folder / content["weights"]
    changes = {
        "newer": {"format": 2},
        "channels": {"mean": [0.5]},
        "zero": {"std": [0.0, 1.0, 1.0]},
        "text": {"std": ["1", "1", "1"]},
        "unknown": {"colour": "RGB"},
        "outside": {"weights": "../../secret.pt"},
        "nameless": {"test_view": [{"size": 8}]},
        "transform": {"test_view": [{"name": "Rezise", "size": 8}]},
        "network": {"model": "cnn_smal"},
        "other": {"model": "mlp"},
        "classes": {"classes": ["a", "b"]},
    }
    if what in changes:
        path.write_text(json.dumps(content | changes[what]))
    elif what == "no json":
        path.unlink()
    elif what == "half json":
        path.write_text(path.read_text()[:-20])
    elif what == "not json":
        path.write_bytes(b"\xff\xfe\x00")
    elif what == "no weights":
        weights.unlink()
    elif what == "bit":
        data = bytearray(weights.read_bytes())
        data[len(data) // 2] ^= 1
        weights.write_bytes(data)
    elif what == "rubbish":
        weights.write_bytes(b"rubbish")
        path.write_text(json.dumps(content | {"sha256": digest(weights)}))
    return folder


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("newer", ["preprocessing.json", "format"]),
        ("channels", ["mean and std", "3"]),
        ("zero", ["std above 0"]),
        ("text", ["std"]),
        ("unknown", ["colour"]),
        ("outside", ["secret.pt", "beside"]),
        ("nameless", ["test_view", "name"]),
        ("transform", ["Rezise"]),
        ("network", ["'cnn_smal'", "cnn_small"]),
        ("other", ["model.pt", "cannot be read"]),
        ("classes", ["model.pt", "cannot be read"]),
        ("no json", ["not an export", "kdcl export"]),
        ("half json", ["preprocessing.json", "export it again"]),
        ("not json", ["preprocessing.json", "export it again"]),
        ("no weights", ["model.pt", "cannot be read"]),
        ("bit", ["model.pt", "damaged"]),
        ("rubbish", ["model.pt"]),
    ],
)
def test_mistakes_in_what_was_exported(
    exports: dict[str, Path], pictures: Path, tmp_path: Path, what: str, words: Sequence[str]
) -> None:
    folder = spoilt(exports["state_dict"], tmp_path / "x", what)
    assert_one_line(run("predict", folder, pictures / "files"), *words)


@pytest.mark.parametrize("kind", KINDS[1:])
def test_damaged_weights_of_each_format(
    exports: dict[str, Path], pictures: Path, tmp_path: Path, kind: str
) -> None:
    for what in ("bit", "rubbish"):
        folder = spoilt(exports[kind], tmp_path / what, what)
        assert_one_line(run("predict", folder, pictures / "files"), formats.FORMATS[kind].file)  # type: ignore[index]


class Trap:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.path),)


def rewritten(source: Path, change: Callable[[str, bytes], bytes]) -> bytes:
    """A zip archive with its parts changed."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(made := io.BytesIO(), "w") as new:
        for entry in old.infolist():
            new.writestr(entry.filename, change(entry.filename, old.read(entry)))
    return made.getvalue()


@pytest.mark.parametrize(
    "what", ["state_dict", "inputs", "pickled weight", "operator", "size", "guards", "part"]
)
def test_nothing_in_an_export_is_executed(
    exports: dict[str, Path], pictures: Path, tmp_path: Path, what: str
) -> None:
    trap = tmp_path / "executed"
    torch.save((Trap(trap),), code := io.BytesIO())
    kind = "state_dict" if what == "state_dict" else "torch_export"
    folder = tmp_path / "x"
    shutil.copytree(exports[kind], folder)
    path = folder / formats.FORMATS[kind].file  # type: ignore[index]

    def change(name: str, data: bytes) -> bytes:
        text = data.decode() if name.endswith(".json") else ""
        if what == "inputs" and "sample_inputs" in name:
            return code.getvalue()
        if what == "pickled weight" and name.endswith("weight_0"):
            return code.getvalue()
        if what == "pickled weight":
            return text.replace('"use_pickle": false', '"use_pickle": true').encode() or data
        if what == "operator":
            return text.replace("torch.ops.aten.relu_.default", "torch.hub.load").encode() or data
        if what == "size":
            evil = f"__import__('os').mkdir('{trap}')"
            return re.sub(r"Symbol\('(\w+)'[^)]*\)", evil, text).encode() or data
        if what == "guards":
            return text.replace('"guards_code": []', '"guards_code": ["print(1)"]').encode() or data
        return data

    if what == "state_dict":
        path.write_bytes(code.getvalue())
    else:
        old = path.read_bytes()
        path.write_bytes(rewritten(path, change))
        if what == "part":
            with zipfile.ZipFile(path, "a") as archive:
                archive.writestr("model/data/constants/opaque_obj_0", pickle.dumps(Trap(trap)))
        assert path.read_bytes() != old
    content = json.loads((folder / "preprocessing.json").read_text())
    (folder / "preprocessing.json").write_text(json.dumps(content | {"sha256": digest(path)}))
    words = "more than tensors" if what == "state_dict" else "could run code"
    assert_one_line(run("predict", folder, pictures / "files"), path.name, words)
    assert not trap.exists()


def test_a_plain_archive_passes_unchanged(exports: dict[str, Path], tmp_path: Path) -> None:
    """What the test above changes is what it is refused for."""
    folder = tmp_path / "x"
    shutil.copytree(exports["torch_export"], folder)
    path = folder / "model.pt2"
    path.write_bytes(rewritten(path, lambda name, data: data))
    formats.check_archive(path)


def test_images_that_cannot_be_used(exports: dict[str, Path], pictures: Path, tmp_path: Path) -> None:
    good = pictures / "files" / "03.png"
    (tmp_path / "text.png").write_text("not an image")
    (tmp_path / "half.png").write_bytes(good.read_bytes()[:-40])
    result = run("predict", exports["onnx"], tmp_path, good, "--csv")
    assert result.exit_code == 2
    errors = [line for line in result.stderr.splitlines() if line]
    assert [line.split(": ")[2] for line in errors] == [
        str(tmp_path / "half.png"),
        str(tmp_path / "text.png"),
    ]
    assert "not a JPEG or PNG image" in errors[1]
    assert [row.split(",")[0] for row in result.stdout.splitlines()] == ["image", *[str(good)] * 4]
    (tmp_path / "empty").mkdir()
    for path, words in (
        (tmp_path / "none.png", "none.png"),
        (tmp_path / "empty", "holds no image"),
        (tmp_path / "text.png", "not a JPEG or PNG"),
    ):
        assert_one_line(run("predict", exports["onnx"], path), words)


def test_an_image_of_another_size(
    trained: Run, exports: dict[str, Path], pictures: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "x"
    shutil.copytree(exports["state_dict"], folder)
    content = json.loads((folder / "preprocessing.json").read_text())
    (folder / "preprocessing.json").write_text(json.dumps(content | {"test_view": []}))
    result = run("predict", folder, pictures / "files" / "03.png")
    assert_one_line(result, "03.png", "the network takes 3x8x8", "data.test_view")


def test_a_network_of_two_channels(pictures: Path, tmp_path: Path) -> None:
    network = exporting.random_network("mlp", 4, 2, 8)
    writing.write(exporting.source_of("mlp", network, tmp_path, channels=2, size=8), "state_dict", tmp_path)
    assert_one_line(run("predict", tmp_path, pictures / "files"), "2 channels", "no image file")


def test_two_exports_into_one_folder(trained: Run, tmp_path: Path) -> None:
    """One of them is whole, the other is refused."""
    outcomes: list[str] = []

    def write() -> None:
        try:
            writing.export(trained.folder.uri, "a", "state_dict", to=tmp_path / "x")
            outcomes.append("done")
        except Exception as error:
            outcomes.append(str(error))

    threads = [threading.Thread(target=write) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(text == "done" for text in outcomes) == [False, True], outcomes
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
    Export.read(tmp_path / "x")

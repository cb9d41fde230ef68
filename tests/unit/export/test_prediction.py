"""`kdcl predict`: logits and classes of each format, and every mistake in one clear line."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import exporting
import numpy as np
import onnx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F
from commands import assert_one_line
from exporting import CLASSES, run
from importing import claimed
from PIL import Image
from torch import nn

from kdcl_dist import models
from kdcl_dist.cli.export import KINDS
from kdcl_dist.errors import UserError
from kdcl_dist.evaluation import Trained
from kdcl_dist.export import formats, inputs, writing
from kdcl_dist.export.inputs import Images, preparation_of
from kdcl_dist.export.prediction import Export, RankedClass, dataset_in, images_in
from kdcl_dist.export.preprocessing import Description, Kind, digest
from kdcl_dist.run.record import read_record
from kdcl_dist.run.run import Run
from kdcl_dist.student.student import Student


def test_logits_are_those_of_an_evaluation(trained: Run, exports: dict[str, Path], pictures: Path) -> None:
    known = Trained.load(trained.folder.uri, device="cpu", warn=print, allow_imports=["nets"])
    expected = torch.cat(
        [known.students[0].predict(batch.inputs) for batch in known.training_data.test_batches()]
    )
    files = sorted((pictures / "files").rglob("*.png"), key=lambda path: path.name)
    for kind, folder in exports.items():
        export = Export.read(folder)
        prepared = preparation_of(folder, export.description)
        views = prepared.views(Images(files, export.description))
        found = export.logits(prepared.stacked(list(views)))
        assert torch.allclose(found, expected, rtol=0, atol=0 if kind in KINDS[:2] else 1e-5), kind
    losses = F.cross_entropy(expected, torch.from_numpy(np.asarray(known.training_data.test.labels)))
    assert float(losses) == pytest.approx(read_record(trained.folder)["results"]["a"]["loss"], rel=1e-6)


def test_a_data_set_of_images_has_the_predictions_of_its_files(
    exports: dict[str, Path], pictures: Path
) -> None:
    by_file = run("predict", exports["onnx"], pictures / "files", "--csv").output.splitlines()
    by_row = run("predict", exports["onnx"], pictures / "test.arrow", "--csv").output.splitlines()
    assert by_row[0] == "row,rank,class,probability"
    assert by_row[1].startswith("0,1,")
    # All files are found by their names, those of the inner folder too.
    numbers = [f"{int(Path(line.split(',')[0]).stem)},{line.split(',', 1)[1]}" for line in by_file[1:]]
    assert sorted(numbers) == sorted(by_row[1:])
    assert_one_line(run("predict", exports["onnx"], "nowhere:data"), "No module named 'nowhere'")


def test_predictions_of_a_folder(trained: Run, exports: dict[str, Path], pictures: Path) -> None:
    known = Trained.load(trained.folder.uri, device="cpu", warn=print, allow_imports=["nets"])
    logits = torch.cat(
        [known.students[0].predict(batch.inputs) for batch in known.training_data.test_batches()]
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


def test_logits_that_are_no_numbers_are_no_prediction(
    exports: dict[str, Path], pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = Export.logits

    def spoilt_logits(self: Export, inputs: torch.Tensor) -> torch.Tensor:
        logits = known(self, inputs)
        logits[1] = torch.nan
        return logits

    monkeypatch.setattr(Export, "logits", spoilt_logits)
    result = run("predict", exports["onnx"], pictures / "files/00.png", pictures / "files/01.png", "--csv")
    assert result.exit_code == 2
    assert len(result.stdout.splitlines()) == 1 + len(CLASSES), "the other picture is told"
    assert "01.png: the network's logits of it are NaN or infinite" in result.stderr


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


@pytest.mark.parametrize("kind", KINDS[:3])
def test_a_network_is_read_for_a_device(exports: dict[str, Path], kind: Kind) -> None:
    """The meta device stands for a GPU: a tensor that were left on the CPU would end the pass."""
    plain, meta = Export.read(exports[kind]), torch.device("meta")
    path = exports[kind] / formats.FORMATS[kind].file
    build = partial(models.build, plain.description.model, len(CLASSES), plain.description.input_shape[0])
    network = formats.read_network(kind, path, build, meta)
    logits_BC = network(torch.empty(5, *plain.description.input_shape, device=meta))
    assert (logits_BC.device.type, tuple(logits_BC.shape)) == ("meta", (5, len(CLASSES)))


def test_a_device_that_is_not_there(
    exports: dict[str, Path], pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = pictures / "files"
    assert_one_line(run("predict", exports["state_dict"], files, "--device", "cuda"), "no GPU")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert Export.read(exports["onnx"]).device == torch.device("cpu")
    assert_one_line(
        run("predict", exports["onnx"], files, "--device", "cuda"), "onnx", "--device auto or cpu"
    )


def test_a_gpu_with_too_little_memory(
    trained: Run, exports: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill(*_: object, **__: object) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nMore")

    full = replace(Export.read(exports["state_dict"]), network=fill)
    known = Trained.load(trained.folder.uri, warn=print, allow_imports=["nets"])
    monkeypatch.setattr(Student, "predict", fill)
    monkeypatch.setattr(nn.Module, "to", fill)
    for work in (
        lambda: full.logits(torch.zeros(1, *full.description.input_shape)),
        lambda: Export.read(exports["state_dict"]),
        known.test,
        lambda: Trained.load(trained.folder.uri, warn=print, allow_imports=["nets"]),
    ):
        with pytest.raises(UserError, match=r"too little free memory; use --device cpu .*2 GiB") as caught:
            work()
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", KINDS[1:])
def test_damaged_weights_of_each_format(
    exports: dict[str, Path], pictures: Path, tmp_path: Path, kind: str
) -> None:
    for what in ("bit", "rubbish"):
        folder = spoilt(exports[kind], tmp_path / what, what)
        assert_one_line(run("predict", folder, pictures / "files"), formats.FORMATS[kind].file)  # type: ignore[index]


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
    os.mkfifo(tmp_path / "fifo.png")
    for path, words in (
        (tmp_path / "fifo.png", "fifo.png: not a regular file"),
        (Path("/dev/zero"), "/dev/zero: not a regular file"),
        (tmp_path / "none.png", "none.png"),
        (tmp_path / "empty", "holds no image"),
        (tmp_path / "text.png", "not a JPEG or PNG"),
    ):
        assert_one_line(run("predict", exports["onnx"], path), words)


def test_an_image_of_more_pixels_than_any(exports: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "bomb.png").write_bytes(claimed("PNG", 13000, 13000))
    words = f"{tmp_path / 'bomb.png'}: unreadable: more than 89,000,000 pixels (169,000,000); scale it down"
    assert_one_line(run("predict", exports["onnx"], tmp_path), words)


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


def changed(export: Path, folder: Path, content: Mapping[str, object]) -> Path:
    """A copy of an export with other fields in its description."""
    shutil.copytree(export, folder)
    path = folder / "preprocessing.json"
    found = json.loads(path.read_text()) | content
    path.write_text(json.dumps(found | {"sha256": digest(folder / found["weights"])}))
    return folder


@pytest.mark.parametrize("nested", [False, True])
def test_an_onnx_file_whose_data_lies_elsewhere(
    nested: bool, exports: dict[str, Path], pictures: Path, tmp_path: Path
) -> None:
    """In the graph, and in a branch of a node."""
    model = onnx.load(exports["onnx"] / "model.onnx")
    tensor = onnx.TensorProto(name="w", data_type=onnx.TensorProto.FLOAT, dims=[1])
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="beside.bin")
    if nested:
        branch = onnx.helper.make_graph([], "branch", [], [], [tensor])
        model.graph.node.append(onnx.helper.make_node("If", ["c"], [], then_branch=branch))
    else:
        model.graph.initializer.append(tensor)
    shutil.copytree(exports["onnx"], tmp_path / "x")
    (tmp_path / "x" / "beside.bin").write_bytes(bytes(4))
    (tmp_path / "x" / "model.onnx").write_bytes(model.SerializeToString())
    folder = changed(tmp_path / "x", tmp_path / "y", {})
    assert_one_line(run("predict", folder, pictures / "files"), "the tensor 'w' lies in another file")


@pytest.mark.parametrize("kind", ["state_dict", "safetensors"])
def test_a_network_larger_than_its_weights_is_not_built(
    kind: str, exports: dict[str, Path], pictures: Path, tmp_path: Path
) -> None:
    classes = [str(number) for number in range(50_000)]
    folder = changed(exports[kind], tmp_path / "x", {"model": "resnet18", "classes": classes})
    words = "resnet18 with 50,000 classes has 147,344,608 bytes of weights, more than this file"
    assert_one_line(run("predict", folder, pictures / "files"), words)


@pytest.mark.parametrize(
    ("padding", "words"),
    [(100_000, "x: test_view: transform 0: Pad with"), (9_000, "Pad makes an image of ")],
)
def test_a_test_view_that_pads_to_gigabytes(
    padding: int, words: str, exports: dict[str, Path], pictures: Path, tmp_path: Path
) -> None:
    view = {"test_view": [{"name": "Pad", "padding": padding}]}
    folder = changed(exports["state_dict"], tmp_path / "x", view)
    assert_one_line(run("predict", folder, pictures / "files" / "03.png"), words)


def test_large_images_come_in_small_batches(
    exports: dict[str, Path], pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def names(found: Export) -> list[str]:
        ranked = found.predict(images_in([pictures / "files"]), 1)
        return [each.name for each in ranked if isinstance(each, RankedClass)]

    export = Export.read(exports["state_dict"])
    expected, sizes, logits = names(export), [], Export.logits

    def counted(self: Export, images_BCHW: torch.Tensor) -> torch.Tensor:
        sizes.append(len(images_BCHW))
        return logits(self, images_BCHW)

    monkeypatch.setattr(Export, "logits", counted)
    monkeypatch.setattr(inputs, "BATCH_NUMBERS", 3 * 8 * 8 * 5 + 1)
    assert names(export) == expected
    assert sizes == [5, 5, 5, 5, 3]


def test_names_of_an_export_are_shown_printable_and_short(
    exports: dict[str, Path], pictures: Path, tmp_path: Path
) -> None:
    names = ["=1+1", "\x1b[31mred\nkdcl: error: no", "\u202e" + "x" * 100_000, "-1"]
    folder = changed(exports["state_dict"], tmp_path / "x", {"classes": names})
    image = tmp_path / "\x1b[2J\n.png"
    shutil.copy(pictures / "files" / "03.png", image)
    table, cells = run("predict", folder, image), run("predict", folder, image, "--csv")
    assert (table.exit_code, cells.exit_code) == (0, 0)
    lines, rows = table.output.split("\n")[:-1], cells.output.split("\n")[:-1]
    assert (len(lines), len(rows)) == (4, 5)
    assert all(line.isprintable() for line in lines + rows)
    assert max(map(len, lines)) < 300 + len(str(tmp_path))
    read = list(csv.reader(rows[1:]))
    assert {"'=1+1", "-1", "\\x1b[31mred\\nkdcl: error: no"} < {row[2] for row in read}
    assert max(len(row[2]) for row in read) <= 2_000
    assert {row[0] for row in read} == {str(tmp_path / "\\x1b[2J\\n.png")}


def test_a_folder_of_parquet_files_is_a_data_set(tmp_path: Path) -> None:
    """As for `data.test`; a folder of image files is none."""
    picture = io.BytesIO()
    Image.new("L", (8, 8)).save(picture, "png")
    (tmp_path / "tables").mkdir()
    rows = pa.table({"image": [picture.getvalue()] * 2, "label": [0, 1]})
    pq.write_table(rows, tmp_path / "tables" / "part.parquet")
    images = Description.model_construct(input_shape=(1, 8, 8), columns=None)
    found = dataset_in([str(tmp_path / "tables")], images)
    assert found is not None
    assert len(found) == 2
    (tmp_path / "tables" / "part.parquet").rename(tmp_path / "tables" / ".part.parquet")
    assert dataset_in([str(tmp_path / "tables")], images) is None

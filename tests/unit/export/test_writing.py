"""`kdcl export`: the files, the checkpoints, and every mistake in one clear line."""

from __future__ import annotations

import errno
import json
import shutil
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import exporting
import pytest
import torch
from cohorts import Cohort, weights
from commands import assert_one_line
from exporting import CLASSES, run

from kdcl_dist.cli.export import KINDS
from kdcl_dist.export import formats, writing
from kdcl_dist.export.prediction import Export
from kdcl_dist.run.metrics import read_metrics
from kdcl_dist.run.prepare import prepare
from kdcl_dist.run.run import Run

#: The user allows the networks of the tests.
OWN = ("--allow-imports", "nets")


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


def test_which_checkpoint(trained: Run, tmp_path: Path) -> None:
    for option, step in ((("--epoch", 1), 3), (("--last",), 6), ((), 6)):
        assert (
            run(
                "export", trained.folder.local, "--student", "b", *option, *OWN, "--to", tmp_path / "x"
            ).exit_code
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
        # A user who has that module can load it.
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
        (
            "",
            ["--student", "a", "--epoch", "best"],
            ["--epoch best", "no best epoch", "checkpoint.best is null"],
        ),
        ("format", ["--student", "a", "--epoch", "1"], ["epoch 1", "format 2", "reads format 1"]),
        ("format", ["--student", "a"], ["no complete checkpoint"]),
        ("parts", ["--student", "a", "--last"], ["--last", "a.pt is damaged"]),
        ("model", ["--student", "a"], ["student 'a'", "does not fit", "cnn_medium", "recipe.yaml"]),
        ("gone", ["--student", "b", "--allow-imports", "no_such_nets"], ["importing 'no_such_nets' failed"]),
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
    for arguments in (["--epoch", 1, "--last"], ["--epoch", 0], ["--epoch", "last"], ["--format", "keras"]):
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

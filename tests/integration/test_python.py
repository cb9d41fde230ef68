"""Training from Python: a script of a user, what becomes of its run folder, and callbacks."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from cohorts import ROOT, SUPPORT
from nets import Paced, Plain

from kdcl_dist import Run, train
from kdcl_dist.api.callbacks import EpochState
from kdcl_dist.cli import kdcl
from kdcl_dist.errors import ImportRefused, RecipeError, RunFolderError, UserError
from kdcl_dist.run.events import Event, Note


def run_script(launcher: str, runs: Path, name: str) -> tuple[dict[str, Any], str]:
    """What the script says of its run, and its output."""
    script = SUPPORT / "python_script.py"
    answer = subprocess.run(
        [sys.executable, str(script), launcher, str(runs), name],
        env={**os.environ, "PYTHONPATH": f"{SUPPORT / 'inject'}{os.pathsep}{ROOT}"},
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
    )
    assert answer.returncode == 0, answer.stderr
    found: dict[str, Any] = json.loads((runs / f"{name}.json").read_text())
    assert not answer.stdout
    return found, answer.stderr


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def trained(runs: Path) -> tuple[dict[str, Any], str]:
    """The run of the script, in which a student is killed."""
    return run_script("local", runs, "first")


def test_a_script_without_a_guard_trains_once(trained: tuple[dict[str, Any], str], runs: Path) -> None:
    found, output = trained
    assert (runs / "starts").read_text() == "once\n"
    assert (runs / "died").exists()
    assert sorted(path.name for path in runs.iterdir() if path.is_dir()) == ["first"]
    assert output.count("\n") == 1
    assert output.startswith(f"{runs}/first: finished; test top-1 % small ")
    assert found["state"] == "finished"
    assert found["predicted"] == [0, 1, 2]
    assert found["evaluated"]["large"]["loss"] == pytest.approx(found["results"]["large"]["loss"], rel=1e-5)
    assert "model: object:given" in found["recipe"]
    record = json.loads((runs / "first" / "run.json").read_text())
    assert [each["student"] for each in record["failures"]["causes"]] == ["small"]


def test_without_the_death_and_on_ray_it_ends_with_the_same_weights(
    trained: tuple[dict[str, Any], str], tmp_path: Path
) -> None:
    (tmp_path / "died").touch()  # no student dies again
    found, _ = run_script("ray", tmp_path, "second")
    assert (tmp_path / "starts").read_text() == "once\n"
    assert found["weights"] == trained[0]["weights"]
    assert found["results"] == trained[0]["results"]


@pytest.mark.usefixtures("trained")
def test_commands_say_that_objects_are_passed_in_python(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(runs)
    resume = ["--resume", "--storage", str(runs), "--name", "first", "--launcher", "local"]
    for arguments in (
        ["evaluate", "first"],
        ["export", "first", "--student", "small"],
        ["train", "first/recipe.yaml", *resume],
        ["train", "first/recipe.yaml", "--launcher", "local", "--name", "third"],
    ):
        answer = CliRunner().invoke(kdcl, arguments)
        assert answer.exit_code == 2, arguments
        lines = answer.stderr.strip().splitlines()
        assert len(lines) == 1, arguments
        assert "pass it in Python again, as in kdcl_dist.Run(path, students=..., data=...)" in lines[0]
    assert not (runs / "third").exists()


def nothing(event: Event) -> None:
    """Show nothing."""


def test_a_run_opened_anew(data: dict[str, str], tmp_path: Path) -> None:
    students, sets = {"a": Plain, "b": "mlp"}, (data["train"], data["test"])
    events: list[Event] = []
    common: dict[str, Any] = {"launcher": "local", "storage": str(tmp_path), "on_event": events.append}
    fields: dict[str, Any] = {"epochs": 2, "batch_size": 16, "val_fraction": 0.2, "schedule": "constant"}
    trained = train(students=students, data=sets, name="x", **common, **fields)
    assert events

    closed = Run(tmp_path / "x")
    assert closed.recipe == trained.recipe
    assert closed.results == trained.results
    assert "a/best" in closed.results
    assert len(closed.metrics()) == len(trained.metrics())
    assert list(closed.metrics().columns) == ["student", "epoch", "step", "split", "name", "value"]
    with pytest.raises(ImportRefused, match="object:a"):
        closed.student("a")
    assert closed.report()._repr_html_().startswith("<iframe")
    assert "finished" in closed._repr_html_()
    assert "finished" in repr(closed)

    opened = Run(tmp_path / "x", students=students, data=sets)
    by_name = Run(tmp_path / "x", objects={"object:a": Plain})
    for epoch in ("last", "best", 2):
        network = opened.student("a", epoch)  # type: ignore[arg-type]
        assert not network.training
        images = torch.rand(3, 1, 8, 8)
        expected = torch.softmax(network(images), 1)
        assert torch.equal(by_name.predict(images, "a", epoch), expected)  # type: ignore[arg-type]
    pixels = (torch.rand(3, 1, 8, 8) * 255).to(torch.uint8)
    normalised = (pixels / 255 - 0.5) / 0.25
    assert torch.allclose(opened.predict(pixels), opened.predict(normalised))
    assert torch.allclose(opened.predict(pixels).sum(1), torch.ones(3))
    assert opened.classes == [f"class {number}" for number in range(4)]
    with pytest.raises(RunFolderError, match="no such student"):
        opened.student("c")
    card = opened.export("a", to=tmp_path / "export").joinpath("README.md").read_text()
    assert (
        "# object:a: the network that train() was given in Python, built here as there\n\nnetwork = ..."
        in card
    )

    longer = opened.resume(4, launcher="local", on_event=nothing)
    assert longer.recipe.epochs == 4
    assert longer.metrics()["epoch"].max() == 3
    whole = train(students=students, data=sets, name="y", **common, **{**fields, "epochs": 4})
    assert longer.results == whole.results


class StopsAfter:
    """Asks for a checkpoint after the first epoch, and for the end after the second."""

    def __init__(self, fails: bool = False) -> None:
        self.fails, self.states = fails, list[EpochState]()

    def on_epoch_end(self, state: EpochState) -> None:
        """Ask."""
        self.states.append(state)
        if self.fails:
            raise ArithmeticError("a user's mistake")
        (state.save if state.epoch == 1 else state.stop)()


def test_callbacks_save_and_stop_and_their_mistakes_lose_nothing(
    data: dict[str, str], tmp_path: Path
) -> None:
    events: list[Event] = []
    callback = StopsAfter()
    common: dict[str, Any] = {
        "students": {"a": Paced, "b": "mlp"},
        "data": (data["train"], data["test"]),
        "launcher": "local",
        "storage": str(tmp_path),
        "epochs": 200,
        "batch_size": 2,
        "checkpoint": {"every_epochs": 100},
    }
    run = train(name="x", on_event=events.append, callbacks=[callback], **common)
    assert run.state == "interrupted"
    assert {"a", "b", "ensemble"} <= run.results.keys()
    assert callback.states[0].test.keys() == {"a", "b", "ensemble"}
    assert any(isinstance(each, Note) and each.text.startswith("a callback asks") for each in events)
    assert run.metrics()["epoch"].max() < 199
    assert run.student("a").steps >= 60  # in the third epoch or later: the training does not wait

    with pytest.raises(
        UserError, match=r"callback StopsAfter failed after epoch 1: ArithmeticError.*saved in"
    ):
        train(name="y", on_event=nothing, callbacks=[StopsAfter(fails=True)], **common)
    assert Run(tmp_path / "y", objects={"object:a": Paced}).student("a").steps >= 30


def test_a_process_that_imports_the_script_again_trains_nothing(
    data: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(multiprocessing.current_process(), "_inheriting", True, raising=False)
    with pytest.raises(UserError, match=r'below `if __name__ == "__main__":`'):
        train(
            students={"a": "mlp"},
            data=(data["train"], data["test"]),
            launcher="local",
            storage=str(tmp_path / "runs"),
            on_event=nothing,
        )
    assert not (tmp_path / "runs").exists()


def test_what_is_no_run_or_no_call(data: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match=r"it has no recipe\.yaml"):
        Run(tmp_path)
    with pytest.raises(RecipeError, match="needs a recipe, or students="):
        train(students={"a": "mlp"})  # type: ignore[call-overload]
    with pytest.raises(RecipeError, match="of a recipe takes no data, epochs"):
        train("recipe.yaml", data=(), epochs=3)  # type: ignore[call-overload]
    with pytest.raises(RecipeError, match=r"no-such\.yaml"):
        train(tmp_path / "no-such.yaml")

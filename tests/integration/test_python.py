"""Training from Python: runs opened anew, and callbacks. A script of a user: on_ray/test_script.py."""

from __future__ import annotations

import multiprocessing
from pathlib import Path
from typing import Any

import pytest
import torch
from nets import Paced, Plain

from kdcl_dist import Run, train
from kdcl_dist.api.callbacks import EpochState
from kdcl_dist.errors import ImportRefused, RecipeError, RunFolderError, UserError
from kdcl_dist.run.events import Event, Note


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
        "epochs": 600,
        "batch_size": 6,
        "checkpoint": {"every_epochs": 100},
    }
    run = train(name="x", on_event=events.append, callbacks=[callback], **common)
    assert run.state == "interrupted"
    assert {"a", "b", "ensemble"} <= run.results.keys()
    assert callback.states[0].test.keys() == {"a", "b", "ensemble"}
    assert any(isinstance(each, Note) and each.text.startswith("a callback asks") for each in events)
    assert run.metrics()["epoch"].max() < 599
    assert run.student("a").steps >= 20  # in the third epoch or later: the training does not wait

    with pytest.raises(
        UserError, match=r"callback StopsAfter failed after epoch 1: ArithmeticError.*saved in"
    ):
        train(name="y", on_event=nothing, callbacks=[StopsAfter(fails=True)], **common)
    assert Run(tmp_path / "y", objects={"object:a": Paced}).student("a").steps >= 10


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

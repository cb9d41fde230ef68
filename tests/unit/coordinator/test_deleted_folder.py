"""A run folder that is deleted, whole or in part, while its run trains."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from cohorts import Cohort, MakeRecipe

from kdcl_dist.config.recipe_file import parse_recipe
from kdcl_dist.coordinator import loop
from kdcl_dist.errors import CheckpointError
from kdcl_dist.evaluation import evaluate
from kdcl_dist.run.events import Warned
from kdcl_dist.run.record import read_record
from kdcl_dist.run.run import Run


def delete(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


@pytest.mark.parametrize("name", ["", "recipe.yaml", "run.json"])
def test_what_is_deleted_is_written_again(
    name: str, make_recipe: MakeRecipe, make_run: Callable[..., Run]
) -> None:
    run, calls = make_run(make_recipe("epochs=1")), iter(range(1000))

    def stop() -> bool:
        if next(calls) == 1:
            before.update(read_record(run.folder))
            delete(Path(run.folder.uri) / name)
        return False

    before: dict[str, object] = {}
    cohort = Cohort(run).train(stop)
    assert not cohort.errors
    texts = [event.text for event in cohort.events if isinstance(event, Warned)]
    assert len(texts) == 1
    assert f"{name} of" in texts[0] or not name
    assert "was deleted during the run" in texts[0]
    assert parse_recipe(run.folder.read("recipe.yaml").decode()) == run.recipe
    record = read_record(run.folder)
    assert record.keys() == before.keys() | {"results"}
    assert (record["state"], record["placement"]) == ("finished", before["placement"])
    assert evaluate(run.folder.uri, device="cpu", warn=print).results == record["results"]


def test_without_its_last_checkpoint_a_run_does_not_finish(
    make_recipe: MakeRecipe, make_run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, finish = make_run(make_recipe("epochs=1")), loop.CoordinatorLoop._finish

    def finish_without_folder(self: loop.CoordinatorLoop) -> None:
        delete(Path(run.folder.uri))
        finish(self)

    monkeypatch.setattr(loop.CoordinatorLoop, "_finish", finish_without_folder)
    error = Cohort(run).train().errors["coordinator"]
    assert isinstance(error, CheckpointError)
    assert "the last checkpoint was deleted from" in str(error)

"""The best epoch and the patience of a run, on figures written out."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from kdcl_dist.errors import CheckpointError, RunFolderError
from kdcl_dist.run import checkpoint as C
from kdcl_dist.run.epochs import checkpoint_of_best
from kdcl_dist.run.storage import Folder
from kdcl_dist.run.validation import Validation, best_of, figure, read_validation

NAN = math.nan


def values(top1: float, loss: float = 1.0) -> dict[str, float]:
    return {"loss": loss, "top1": top1, "top5": 1.0}


def of(**columns: list[float]) -> Validation:
    """Passes after epochs 0, 2, 4, ... of four steps each, with the top-1 of each student; NaN: absent."""
    found = Validation()
    for number, row in enumerate(zip(*columns.values(), strict=True)):
        results = {name: values(x, 1 - x) for name, x in zip(columns, row, strict=True) if not math.isnan(x)}
        found.add(2 * number, 8 * number + 4, results, list(results))
    return found


@pytest.mark.parametrize("metric", ["top1", "loss"])
def test_the_best_is_the_earliest_among_equals(metric) -> None:
    found = of(a=[0.1, 0.5, 0.25, 0.5], b=[NAN, 0.75, 0.75, NAN])
    best = found.bests(["a", "b", "c"], metric)
    assert {name: (each.step, each.epoch) for name, each in best.items()} == {"a": (12, 2), "b": (12, 2)}
    assert best["a"].value == 0.5
    assert found.best("a", metric, until=11).step == 4
    assert found.best("b", metric, until=4) is None
    assert found.bests(["a"], None) == {}


def test_a_student_that_diverged_is_not_best() -> None:
    found = of(a=[0.25])
    found.add(2, 12, {"a": values(1.0, NAN)}, ["a"])  # logits that are not numbers rank no class above
    assert found.best("a", "top1").step == 4
    assert found.waited(["a"], "top1") == 1


def test_the_figure_of_averaged_weights_decides() -> None:
    results = {"a": values(0.9), "a/ema": values(0.3), "b": values(0.4), "ensemble/ema": values(0.5)}
    assert [figure(results, name, "top1") for name in ("a", "b", "c")] == [0.3, 0.4, None]


def test_weights_that_no_checkpoint_has_are_not_best() -> None:
    found = of(a=[0.1, 0.5], b=[0.1, 0.5])
    found.lose(["b"], 9)
    assert found.best("b", "top1").step == 12
    found.lose(["b"], 12)
    assert (found.best("a", "top1").step, found.best("b", "top1").step) == (12, 4)
    assert found.waited(["b"], "top1") == 0, "the figure was reached, whatever became of the weights"


def test_patience_waits_for_any_student() -> None:
    found = of(a=[0.1, 0.2, 0.2, 0.1], b=[0.5, 0.5, 0.6, 0.6])
    assert found.waited(["a"], "top1") == 2
    assert found.waited(["b"], "loss") == 1
    assert found.waited(["a", "b"], "top1") == 1
    assert Validation().waited(["a"], "top1") == 0


def commit(folder: Folder, step: int, **state: object) -> C.Manifest:
    parts = {name: C.write_part(folder, step, name, own) for name, own in (("coordinator", state), ("a", {}))}
    C.commit(folder, manifest := C.Manifest(step, parts))
    return manifest


def test_the_checkpoint_of_the_best_epoch(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    commit(folder, 4)
    newest = commit(folder, 12, validation=of(a=[0.5, 0.25]).tests)
    found = best_of(folder, newest, "a", "top1")
    assert found is not None
    assert (found[0].step, found[1].step) == (4, 4)
    assert best_of(folder, newest, "b", "top1") is None
    assert best_of(folder, newest, "a", None) is None
    C.prune(folder, 1)
    with pytest.raises(CheckpointError, match="the best epoch of 'a', 1, cannot be used: it has no manifest"):
        best_of(folder, newest, "a", "top1")


def test_old_and_strange_checkpoints_have_no_best(tmp_path: Path, make_recipe) -> None:
    folder = Folder(str(tmp_path))
    assert read_validation(folder, commit(folder, 1)).tests == []
    recipe = make_recipe("data.val_fraction=0.1", "checkpoint.best=top1")
    with pytest.raises(RunFolderError, match=r"--epoch best: .* has no best epoch of 'a' \(no test"):
        checkpoint_of_best(folder, recipe, commit(folder, 2), "a")
    with pytest.raises(RunFolderError, match=r"no best epoch of 'a' \(checkpoint.best is null\)"):
        checkpoint_of_best(folder, make_recipe(), commit(folder, 2), "a")
    for passes in (3, [3], [{"epoch": 1}], [{"epoch": 1, "step": "x", "results": {}, "saved": []}]):
        with pytest.raises(RunFolderError, match="no tests on validation samples, but"):
            checkpoint_of_best(folder, recipe, commit(folder, 3, validation=passes), "a")

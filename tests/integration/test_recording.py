"""Recorded training logits are those of the reference, over breaks and failures; they teach as live ones."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import reference
import torch
from cohorts import Cohort, Inject, MakeRecipe, assert_same, weights
from equality import check
from torch import Tensor

from kdcl_dist.data.stored_fit import check_stored
from kdcl_dist.data.stored_logits import TEST_VIEW, StoredLogits
from kdcl_dist.data.training_data import TrainingData
from kdcl_dist.errors import DataError, StorageError
from kdcl_dist.launch import local
from kdcl_dist.run.record import read_record
from kdcl_dist.run.run import Run
from kdcl_dist.run.storage import Folder

CASES = {
    "linear, of student and ensemble": [
        "distillation={wire_precision: fp16, record_logits: {students: [b, ensemble]}}",
        "accumulate=2",
    ],
    "general, the largest": [
        "distillation={method: general, record_logits: {students: [a], top_k: 3, dtype: fp16}}",
        "data.holdout_per_class=3",
    ],
    "mean, in windows": ["distillation={method: mean, window: 2, record_logits: {students: [a]}}"],
}

Rows = dict[tuple[int, int], Tensor]


def recorded(run: Run, name: str) -> StoredLogits:
    found = StoredLogits(f"{run.folder.local}/logits/{name}.arrow")
    found.check()
    return found


def check_rows(run: Run, expected: dict[str, Rows]) -> None:
    """Every file has the rows of the reference, and no others."""
    asked = run.recipe.distillation.record_logits
    assert asked is not None
    for name in asked.students:
        file = recorded(run, name)
        held = sum(bool(file.rows(np.array([id]), TEST_VIEW)[1]) for id in range(60))
        assert len(file) - held == len(expected[name])
        assert held == 4 * run.recipe.data.holdout_per_class
        for (id, view), row in expected[name].items():
            (found,), there = file.rows(np.array([id]), view)
            kept = row.topk(asked.top_k or len(row)).indices
            stored = row.half().float() if asked.dtype == "fp16" else row
            assert there.all()
            assert torch.equal(found[kept], stored[kept])


@pytest.mark.parametrize("case", CASES)
def test_stopped_and_on_a_full_disk_it_is_that_of_the_reference(
    case: str, make_recipe: MakeRecipe, make_run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, asked = make_recipe("data.views=2", "epochs=3", *CASES[case]), itertools.count()
    assert not Cohort(make_run(recipe, "r")).train(stop=lambda: next(asked) + 1 >= 5).errors
    run, write = make_run(recipe, "r", resume=True), Folder.write
    assert not run.folder.exists("logits"), "no file of a run that has not finished"

    def full(self: Folder, name: str, data: bytes) -> None:
        if name.startswith("logits/"):
            raise StorageError(f"{name}: no space left")
        write(self, name, data)

    with monkeypatch.context() as patch:
        patch.setattr(Folder, "write", full)
        error = Cohort(run).train().errors["coordinator"]
    assert "no space left; the training is complete and saved: --resume writes what is missing" in str(error)
    run = make_run(recipe, "r", resume=True)
    assert not Cohort(run).train().errors
    assert read_record(run.folder)["state"] == "finished"
    check(run)
    expected: dict[str, Rows] = {}
    reference.train(recipe, records=expected)
    check_rows(run, expected)


def test_what_a_student_taught_it_teaches_again_from_its_file(
    make_recipe: MakeRecipe, make_run: Callable[..., Run], inject: Inject
) -> None:
    """The recorded student has died, and its run went back to a checkpoint in memory."""
    both = ["data.views=2", "distillation.record_logits={students: [a]}", "failure.max_failures=1"]
    both += ["checkpoint.every_epochs=2", "checkpoint.in_memory_every_steps=1"]
    run, met = make_run(make_recipe(*both)), inject("a", "forward", 4, "kill")
    assert local.launch(run, lambda event: None, threading.Event())
    assert met.exists()
    expected: dict[str, Rows] = {}
    reference.train(run.recipe, records=expected)
    check_rows(run, expected)
    file = Path(f"{run.folder.local}/logits/a.arrow")
    b = "{name: b, model: mlp, optimizer: {lr: 0.05}}"
    again = make_run(make_recipe("data.views=2", f"students=[{{name: a, logits: '{file}'}}, {b}]"))
    assert check_stored(TrainingData.open(again.recipe)), "it lacks only rows that no step of it takes"
    with pytest.raises(DataError, match="lacks view 0 of 12 of 60 training samples"):
        check_stored(TrainingData.open(again.recipe.model_copy(update={"seed": 1})))
    assert not Cohort(again).train().errors
    assert_same(weights(again.folder, 6, "b"), weights(run.folder, 6, "b"))

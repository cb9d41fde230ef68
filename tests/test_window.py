"""Students that walk the data in different orders: the same weights as a slow sequential reference."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import Cast, MakeRecipe
from test_equals_reference import check, recipe_for

from kdcl_dist.data import streams
from kdcl_dist.runs import Run
from kdcl_dist.session import Session

MakeRun = Callable[..., Run]
METHODS = ("none", "naive", "linear", "min_logit", "general", "mean", "teacher")
#: 60 samples, 8 steps an epoch (7 with samples held out): windows of 4 and what is left.
SMALL = ("batch_size=7", "epochs=3")


# -- the walk ------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [1, 2, 3, 8, 20])
def test_each_walks_the_same_samples_in_its_own_order(width: int) -> None:
    steps_TB = streams.epoch_steps(np.arange(100, 160), 7, seed=3, epoch=2)
    walks = [np.stack(list(streams.own_steps(steps_TB, width, student, 2))) for student in (5, 6)]
    for first in range(0, len(steps_TB), width):
        shared = np.sort(steps_TB[first : first + width].ravel())
        for walk in walks:
            assert walk.shape == steps_TB.shape
            assert np.array_equal(np.sort(walk[first : first + width].ravel()), shared)
    assert not np.array_equal(*walks)
    if width > 1:
        assert not np.array_equal(*(np.sort(walk, axis=1) for walk in walks)), "not only within a step"
    for start in range(len(steps_TB)):
        rest = list(streams.own_steps(steps_TB, width, 5, 2, start))
        assert np.array_equal(np.stack(rest), walks[0][start:])


def test_a_window_ends_with_its_epoch(make_recipe: MakeRecipe) -> None:
    epoch, wide = (
        [batch.ids.tolist() for batch in Session.open(make_recipe(f"distillation.window={w}")).training(0, 0)]
        for w in ("epoch", 1000)
    )
    assert epoch == wide
    assert len(epoch) == 6


# -- the result ----------------------------------------------------------------------------------


@pytest.mark.parametrize("window", [4, "epoch"])
@pytest.mark.parametrize("method", METHODS)
def test_equals_the_reference(
    method: str, window: int | str, make_recipe: MakeRecipe, make_run: MakeRun, tmp_path: Path
) -> None:
    more = [*SMALL, f"distillation.window={window}"]
    run = make_run(recipe_for(method, make_recipe, tmp_path, *more))
    assert not Cast(run).train().errors
    check(run)

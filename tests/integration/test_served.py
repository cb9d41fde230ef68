"""A member whose network a server computes: the same weights as with the network in the cohort."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import reference
import torch
from cohorts import Cohort, Inject, MakeRecipe, assert_same, weights
from equality import VIEWS
from serving import export_of, serving

from kdcl_dist import models
from kdcl_dist.config.recipe import Recipe
from kdcl_dist.errors import ModelError, StudentLost
from kdcl_dist.export.server import LogitsServer
from kdcl_dist.launch import local
from kdcl_dist.models.remote import client
from kdcl_dist.run.run import Run

CLASSES = [f"class {number}" for number in range(4)]
TEACHER = "{name: t, model: cnn_small, weights: 'FILE', frozen: true}"
CASES = {
    "dml": ["distillation.method=dml"],
    "teacher, in parts": ["distillation={method: teacher, teacher: t}", "accumulate=2"],
    "general, in windows": ["distillation={method: general, window: 3}", "data.holdout_per_class=2"],
}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[LogitsServer]:
    torch.manual_seed(5)
    network = models.build("cnn_small", 4, 1)
    torch.save(network.state_dict(), tmp_path / "t.pt")
    with serving(export_of(network, CLASSES, input_shape=(1, 8, 8))) as server:
        yield server


def cohorts(make_recipe: MakeRecipe, url: str, folder: Path, *more: str) -> tuple[Recipe, Recipe]:
    """A recipe with the served teacher, and the same with the teacher in the cohort."""
    students = "{name: a, model: cnn_small}, {name: b, model: mlp, optimizer: {lr: 0.05}}"
    there = f"{{name: t, model: '{url}'}}"
    here = f"{{name: t, model: cnn_small, weights: '{folder / 't.pt'}', frozen: true}}"
    served, frozen = (make_recipe(f"students=[{students}, {teacher}]", *more) for teacher in (there, here))
    return served, frozen


def check(run: Run, frozen: Recipe) -> None:
    step = max(int(path.name[5:]) for path in Path(f"{run.folder.local}/checkpoints").iterdir())
    for name, state in zip("ab", reference.train(frozen), strict=False):
        assert_same(weights(run.folder, step, name), state)


@pytest.mark.parametrize("case", CASES)
def test_stopped_and_resumed_it_equals_a_frozen_student(
    case: str, server: LogitsServer, make_recipe: MakeRecipe, make_run: Callable[..., Run], tmp_path: Path
) -> None:
    served, frozen = cohorts(make_recipe, server.url, tmp_path, *CASES[case])
    asked = itertools.count()
    assert not Cohort(make_run(served, "r")).train(stop=lambda: next(asked) + 1 >= 4).errors
    run = make_run(served, "r", resume=True)
    assert not Cohort(run).train().errors
    check(run, frozen)


def test_its_process_is_replaced_as_any_other(
    server: LogitsServer,
    make_recipe: MakeRecipe,
    make_run: Callable[..., Run],
    inject: Inject,
    tmp_path: Path,
) -> None:
    more = (
        VIEWS,
        "distillation.method=mean",
        "students.t.replicas=2",
        "data.loader_workers=1",
        "failure.max_failures=1",
    )
    served, frozen = cohorts(make_recipe, server.url, tmp_path, *more)
    run, met = make_run(served), inject("t/1", "forward", 4, "kill")
    assert local.launch(run, lambda event: None, threading.Event())
    assert met.exists()
    check(run, frozen)


def test_a_server_that_ends_ends_its_member(
    server: LogitsServer,
    make_recipe: MakeRecipe,
    make_run: Callable[..., Run],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    served, _ = cohorts(make_recipe, server.url, tmp_path, "limits={step_s: 120, startup_s: 200}")
    steps = itertools.count()

    def count() -> bool:
        if next(steps) == 3:  # from here on the member's clock runs fast
            ticks = itertools.count(time.monotonic(), 20.0)
            fast = SimpleNamespace(monotonic=lambda: next(ticks), sleep=lambda seconds: None)
            monkeypatch.setattr(client, "time", fast)
            server.answering.logits = lambda tensors: (_ for _ in ()).throw(ConnectionError())  # type: ignore[method-assign]
        return False

    cause = Cohort(make_run(served)).train(stop=count).errors["coordinator"]
    assert isinstance(cause, StudentLost)
    assert cause.student == "t"
    assert f"endpoint {server.url} gives no answer within 60 s" in str(cause)


def test_a_server_with_other_classes(
    make_recipe: MakeRecipe, make_run: Callable[..., Run], tmp_path: Path
) -> None:
    network = models.build("cnn_small", 4, 1)
    with serving(export_of(network, CLASSES[::-1], input_shape=(1, 8, 8))) as server:
        served, _ = cohorts(make_recipe, server.url, tmp_path)
        cause = Cohort(make_run(served)).train().errors["coordinator"]
    assert isinstance(cause, ModelError)
    assert "('class 3', 'class 2', 'class 1', 'class 0' ...), and the data has 4 ('class 0'," in str(cause)

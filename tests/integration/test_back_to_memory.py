"""After a student's death all go back a few steps, to a checkpoint in memory; the weights are the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from cohorts import Inject, MakeRecipe, assert_same, train, weights
from equality import PAIR, check

from kdcl_dist import models
from kdcl_dist.run.events import Event, Note, Started
from kdcl_dist.run.metrics import read_metrics
from kdcl_dist.run.record import read_record
from kdcl_dist.run.run import Run

MakeRun = Callable[..., Run]
EVERY = "checkpoint.in_memory_every_steps=3"


def starts(events: list[Event]) -> list[int]:
    """The first step of each generation."""
    return [event.step for event in events if isinstance(event, Started)]


def steps_with_a_loss(run: Run, student: str) -> list[int]:
    rows = read_metrics(run.folder).to_pylist()
    return [r["step"] for r in rows if (r["student"], r["split"], r["name"]) == (student, "train", "loss")]


def await_memory(inject: Inject, step: int, after: Path | str = "") -> None:
    """The coordinator waits in a step until the states of the last checkpoint before it have arrived."""
    inject("coordinator", "broadcast", step, "hold", until="kept", after=after)


def test_deaths_of_one_and_of_several(
    tmp_path: Path, inject: Inject, make_recipe: MakeRecipe, make_run: MakeRun
) -> None:
    """In epochs of eight steps; also while a state is sent, and failures for which memory is not used."""
    torch.manual_seed(5)
    torch.save(models.build("mlp", 4, 1).state_dict(), tmp_path / "c.pt")
    recipe = make_recipe(
        "students=[{name: a, model: cnn_small, ema: {decay: 0.5}}, {name: b, model: mlp, optimizer: "
        f"{{name: adam, lr: 0.01}}}}, {{name: c, model: mlp, weights: '{tmp_path / 'c.pt'}', frozen: true}}]",
        "batch_size=6",
        "accumulate=2",
        "distillation.method=general",
        "data.holdout_per_class=3",
        "failure={max_failures: 9, max_bad_steps: 0}",
        "limits.step_s=150",
        EVERY,
    )
    await_memory(inject, 3)
    inject("b", "forward", 4, "kill")
    inject("b", "forward", 5, "half sent")
    await_memory(inject, 6)
    inject("a", "forward", 7, "kill")
    inject("b", "forward", 7, "kill")
    await_memory(inject, 9)
    bad = inject("b", "forward", 10, "nan")
    killed = inject("coordinator", "gather", 11, "kill", after=bad)
    await_memory(inject, 10, after=killed)  # so that the next one is asked for
    await_memory(inject, 12)
    inject("c", "forward", 13, "kill")
    run = make_run(recipe)
    events = train(run)
    assert starts(events) == [0, 3, 3, 6, 8, 8, 12]
    check(run)
    assert all(steps_with_a_loss(run, name) == [*range(16)] for name in ("a", "b", "c"))
    text = " ".join(event.text for event in events if isinstance(event, Note))
    assert "all go back to step 12, kept in memory" in text


def test_replicas_in_windows(inject: Inject, make_recipe: MakeRecipe, make_run: MakeRun) -> None:
    """A replica has no copy of its own; the coordinator's state has the logits of the window."""
    overrides = (
        PAIR.replace("{name: a, model: mlp,", "{name: a, model: nets:Tiny,"),
        "distillation={method: mean, window: 2}",
        "batch_size=12",
        "failure.max_failures=2",
        "limits.step_s=150",
    )
    whole, run = make_run(make_recipe(*overrides)), make_run(make_recipe(*overrides, EVERY))
    train(whole)
    await_memory(inject, 3)
    inject("a/1", "forward", 4, "kill")
    await_memory(inject, 6)
    inject("a/0", "forward", 7, "kill")
    assert starts(train(run)) == [0, 3, 6]
    for name in ("a", "b"):
        assert_same(weights(run.folder, 10, name), weights(whole.folder, 10, name))
    assert read_record(run.folder)["results"] == read_record(whole.folder)["results"]


def test_under_continue_a_student_returns_with_its_newest_state(
    inject: Inject, make_recipe: MakeRecipe, make_run: MakeRun
) -> None:
    more = ("failure={policy: continue, max_failures: 1, min_students: 1}", "batch_size=7", "epochs=1")
    await_memory(inject, 3)
    inject("b", "forward", 4, "kill")
    inject("coordinator", "gather", 7, "hold", until="returns")
    run = make_run(make_recipe(*more, "limits.step_s=150", EVERY))
    events = train(run)
    (absence,) = read_record(run.folder)["absences"]
    assert (absence["student"], absence["state_of"]) == ("b", 3)
    assert len(starts(events)) == 3
    assert read_record(run.folder)["state"] == "finished"

"""The policies `continue` and `stop`, and students with bad numbers: the other students go on."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import nets
import pytest
import torch
from cohorts import Cohort, Inject, MakeRecipe, assert_same, train, weights

from kdcl_dist.data.training_data import TrainingData
from kdcl_dist.errors import CoordinatorLost, NonFiniteLogits, StudentLost
from kdcl_dist.launch import local
from kdcl_dist.membership.endpoint import Endpoint
from kdcl_dist.run.checkpoint import Manifest, Part, latest
from kdcl_dist.run.events import Event, Note, Started, Warned
from kdcl_dist.run.metrics import read_metrics
from kdcl_dist.run.record import read_record
from kdcl_dist.run.run import Run
from kdcl_dist.student import runtime
from kdcl_dist.student.runtime import run_student

MakeRun = Callable[..., Run]
#: Four epochs of three steps.
CONTINUE = (
    "failure.policy=continue",
    "failure.max_failures=3",
    "failure.min_students=1",
    "batch_size=20",
    "epochs=4",
    "limits.step_s=150",
)
#: The first step of the last epoch: no step follows it before a student that is away asks to join again.
HELD = ("coordinator", "gather", 9, "hold")


def pids(events: list[Event], name: str) -> list[Any]:
    return [e.placement[name]["pid"] for e in events if isinstance(e, Started) and name in e.placement]


def values(run: Run, student: str, split: str, name: str) -> dict[int, float]:
    rows = read_metrics(run.folder).to_pylist()
    found = [r for r in rows if (r["student"], r["split"], r["name"]) == (student, split, name)]
    assert len({r["step"] for r in found}) == len(found), "a step is recorded twice"
    return {r["step"]: r["value"] for r in found}


@pytest.mark.parametrize(
    ("phase", "step", "how"),
    [
        ("data", 4, "kill"),
        ("forward", 4, "kill"),
        ("forward", 4, "exception"),
        ("gather", 4, "kill"),
        ("broadcast", 4, "kill"),
        ("backward", 4, "kill"),
        ("evaluation", 6, "kill"),
        ("checkpoint", 6, "kill"),
    ],
)
def test_the_others_go_on_and_it_joins_them_again(
    phase: str, step: int, how: str, inject: Inject, make_recipe: MakeRecipe, make_run: MakeRun
) -> None:
    failed = inject("b", phase, step, how)
    held = inject(*HELD, until="returns")
    inject("b", "start", 0, "hold", after=failed, until=held)
    run = make_run(make_recipe(*CONTINUE))
    events = train(run)
    assert len(set(pids(events, "a"))) == 1
    assert len(set(pids(events, "b"))) == 2
    record = read_record(run.folder)
    assert record["state"] == "finished"
    assert set(record["results"]) == {"a", "b", "ensemble"}
    (absence,) = record["absences"]
    assert absence["student"] == "b"
    assert absence["state_of"] == 3
    # A step's data are loaded while the answer of the one before is waited for.
    first = step - 1 if phase == "data" else step
    assert first <= absence["since"] < absence["until"] == 10
    alone = range(absence["since"], absence["until"])
    # What was learned before the failure is kept, what was learned alone counts, and no step is doubled.
    learned = values(run, "a", "train", "top1")
    assert set(range(12)) - set(learned) <= {first, step}
    assert not set(alone) & set(values(run, "b", "train", "top1"))
    assert set(range(absence["until"], 12)) <= set(values(run, "b", "train", "top1"))
    assert latest(run.folder, print) is not None


def test_the_others_go_on_without_a_student_whose_numbers_changed(
    tmp_path: Path, inject: Inject, make_recipe: MakeRecipe, make_run: MakeRun
) -> None:
    once = tmp_path / "flipped"
    held = inject(*HELD, until="returns")
    inject("b", "start", 0, "hold", after=once, until=held)
    flips = f"students.b.model={{name: 'nets:Flips', once: {once}}}"
    run = make_run(make_recipe(*CONTINUE, flips, "failure.verify_every_steps=5"))
    events = train(run)
    record = read_record(run.folder)
    (cause,), (absence,) = record["failures"]["causes"], record["absences"]
    assert (cause["error"], cause["student"], cause["step"]) == ("SilentCorruption", "b", 4)
    assert (absence["student"], absence["state_of"], absence["until"]) == ("b", 3, 10)
    assert [len(set(pids(events, name))) for name in ("a", "b")] == [1, 2]
    assert set(range(12)) - set(values(run, "a", "train", "top1")) <= {4, 5}


def test_too_few_wait_and_keep_what_they_learned(
    inject: Inject, make_recipe: MakeRecipe, make_run: MakeRun
) -> None:
    inject("b", "forward", 4, "kill")
    run = make_run(make_recipe(*CONTINUE, "failure.min_students=2", "epochs=2"))
    events = train(run)
    assert any("they wait for it" in event.text for event in events if isinstance(event, Note | Warned))
    (absence,) = read_record(run.folder)["absences"]
    assert absence == {"student": "b", "since": 4, "until": 4, "state_of": 3}
    assert [event.step for event in events if isinstance(event, Started)] == [0, 4]


def test_a_coordinator_that_dies_takes_all_back(
    inject: Inject, make_recipe: MakeRecipe, make_run: MakeRun
) -> None:
    recipe = make_recipe(*CONTINUE, "epochs=2")
    whole, run = make_run(recipe), make_run(recipe)
    train(whole)
    inject("coordinator", "ensemble", 4, "kill")
    train(run)
    for name in ("a", "b"):
        assert_same(weights(run.folder, 6, name), weights(whole.folder, 6, name))
    assert read_record(run.folder)["absences"] == []


def test_what_one_missed_stays_in_the_record_when_the_coordinator_dies(
    inject: Inject, make_recipe: MakeRecipe, make_run: MakeRun
) -> None:
    run = make_run(make_recipe(*CONTINUE, "failure.min_students=2"))
    inject("b", "forward", 4, "kill")
    inject("coordinator", "ensemble", 8, "kill")
    train(run)
    assert read_record(run.folder)["absences"] == [{"student": "b", "since": 4, "until": 4, "state_of": 3}]


def test_a_run_that_ends_without_a_student_ends_at_once(
    inject: Inject, make_recipe: MakeRecipe, make_run: MakeRun
) -> None:
    killed = inject("b", "forward", 4, "kill")
    # The last epoch ends with two parts of the test pass, the checkpoint, and the end: the fourth gathering.
    ended = inject("coordinator", "gather", 6, "hold", nth=4, until=killed)
    inject("b", "start", 0, "hold", after=killed, until=ended)
    run = make_run(make_recipe(*CONTINUE, "students.b.model=nets:Plain", "epochs=2"))
    train(run)
    assert time.time() - ended.stat().st_mtime < 100, "limits.startup_s is 200"
    record = read_record(run.folder)
    assert (record["state"], set(record["results"])) == ("finished", {"a", "ensemble"})


def test_a_student_with_replicas_goes_and_comes_as_one(
    inject: Inject, make_recipe: MakeRecipe, make_run: MakeRun
) -> None:
    inject("b/1", "backward", 4, "kill")
    inject(*HELD, until="returns")
    run = make_run(make_recipe(*CONTINUE, "students.b.replicas=2"))
    events = train(run)
    (absence,) = read_record(run.folder)["absences"]
    assert (absence["student"], absence["state_of"]) == ("b", 3)
    assert len(set(pids(events, "b/0"))) == 1
    assert len(set(pids(events, "b/1"))) == 2


@pytest.mark.parametrize(
    "more",
    [
        ("distillation.method=general", "data.holdout_per_class=2", "batch_size=17"),  # three steps too
        ("distillation.method=dml",),
        ("distillation.method=linear", "distillation.window=2"),
        ("distillation.method=none", "distillation.window=epoch"),
        ("distillation.method=mean", "coordinators=2"),
    ],
)
def test_methods_go_on_with_who_is_there(
    more: tuple[str, ...], inject: Inject, make_recipe: MakeRecipe, make_run: MakeRun
) -> None:
    inject("b", "gather", 4, "kill")
    inject(*HELD, until="returns")
    run = make_run(make_recipe(*CONTINUE, *more))
    train(run)
    (absence,) = read_record(run.folder)["absences"]
    assert absence["student"] == "b"
    assert set(read_record(run.folder)["results"]) == {"a", "b", "ensemble"}


def test_a_student_without_a_part_in_the_checkpoint_begins_from_its_weights(
    make_recipe: MakeRecipe, make_run: MakeRun, tmp_path: Path
) -> None:
    """It was away when the checkpoint was taken from which the run is resumed."""
    torch.manual_seed(5)
    given = nets.Plain(4).state_dict()
    torch.save(given, tmp_path / "b.pt")
    weights_of_b = ("students.b.model=nets:Plain", f"students.b.weights={tmp_path / 'b.pt'}")
    run = make_run(make_recipe(*CONTINUE, *weights_of_b))
    member, training_data = run.recipe.workers[1], TrainingData.open(run.recipe)
    for parts, same in (({}, True), ({"b": Part("0" * 64, 1)}, False)):
        student = runtime._build(
            replace(run, start=Manifest(3, parts)), member, torch.device("cpu"), training_data
        )
        found = student.model.state_dict()
        assert all(torch.equal(found[key], given[key]) for key in given) is same


def test_a_student_keeps_nothing_of_its_life_under_a_lost_coordinator(
    make_recipe: MakeRecipe, make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The frames of the error would hold its network, and the activations of a step."""
    given: list[BaseException | None] = []

    class Runtime:
        def __init__(self, *arguments: Any) -> None:
            given.append(arguments[-1])

        def participate(self) -> bool:
            if len(given) < 3:
                raise CoordinatorLost("the coordinator died", step=4)
            return True

    monkeypatch.setattr(runtime, "_StudentRuntime", Runtime)
    run = make_run(make_recipe("failure.max_failures=3"))
    endpoint = Endpoint("127.0.0.1", 1)
    assert run_student(
        run, 0, lambda lost: endpoint, host="h", device=torch.device("cpu"), stop=lambda: False
    )
    first, *others = given
    assert first is None
    for error in others:
        assert isinstance(error, CoordinatorLost)
        assert error.step == 4
        assert error.__traceback__ is error.__context__ is error.__cause__ is None


def test_where_nobody_has_a_state_any_more_all_return_to_the_checkpoint(
    inject: Inject, make_recipe: MakeRecipe, make_run: MakeRun
) -> None:
    """Otherwise all would go on at the step of the coordinator, and nobody would learn those before it."""
    train(undisturbed := make_run(make_recipe(*CONTINUE), "undisturbed"))
    for name in "ab":
        inject(name, "forward", 5, "kill")
    events = train(run := make_run(make_recipe(*CONTINUE), "r"))
    assert [event.step for event in events if isinstance(event, Started)][-1] == 3
    lines = [event.text for event in events if isinstance(event, Note)]
    assert "no student has its state any more: all go back to the latest checkpoint" in lines
    assert read_record(run.folder)["absences"] == []
    for name in "ab":
        assert set(values(run, name, "train", "loss")) == set(range(12))
        assert_same(weights(run.folder, 12, name), weights(undisturbed.folder, 12, name))


def test_stop_saves_what_the_others_learned(
    inject: Inject, make_recipe: MakeRecipe, make_run: MakeRun
) -> None:
    inject("b", "forward", 4, "kill")
    stop = make_recipe(*CONTINUE, "failure.policy=stop")
    run = make_run(stop, "r")
    events: list[Event] = []
    with pytest.raises(StudentLost) as caught:
        local.launch(run, events.append, threading.Event())
    assert caught.value.student == "b"
    record = read_record(run.folder)
    assert (record["state"], record["cause"]["student"]) == ("failed", "b")
    saved = latest(run.folder, print)
    assert saved is not None
    assert saved.step == 5
    assert (saved.parts["a"].step, saved.parts["b"].step) == (None, 3)
    assert any("at step 5 is saved" in event.text for event in events if isinstance(event, Note | Warned))
    again = make_run(stop, "r", resume=True)
    assert again.step == 5
    train(again)


# -- bad numbers ---------------------------------------------------------------------------------


def test_one_bad_step_is_skipped_and_nobody_else_is_poisoned(
    make_recipe: MakeRecipe, make_run: MakeRun
) -> None:
    more = ("batch_size=20", "students.b.model=nets:NotFiniteOnce")
    cohort = Cohort(make_run(make_recipe(*more))).train()
    assert not cohort.errors
    run = cohort.run
    assert values(run, "b", "train", "skipped") == {3: 1.0}
    assert values(run, "a", "train", "skipped") == {}
    assert 3 not in values(run, "b", "train", "loss")
    # The ensemble of `a` alone: its own prediction, from which it has nothing to learn.
    distilled = values(run, "a", "train", "distillation_loss")
    assert distilled[3] < 1e-6 < distilled[2]
    for name in ("a", "b"):
        for value in weights(run.folder, 6, name).values():
            assert bool(torch.isfinite(value).all())
    (note,) = [event.text for event in cohort.events if isinstance(event, Note | Warned)]
    assert "logits of b at step 3 are NaN" in note


def test_buffers_are_as_before_a_step_that_is_skipped(make_recipe: MakeRecipe, make_run: MakeRun) -> None:
    more = ("batch_size=20", "students.b.model=nets:NotFinite")
    cohort = Cohort(
        make_run(make_recipe(*more, "failure.max_bad_steps=100", "epochs=3", "checkpoint.keep=9"))
    ).train()
    assert not cohort.errors
    assert set(values(cohort.run, "b", "train", "skipped")) == {3, 4, 5, 6, 7, 8}
    assert_same(weights(cohort.run.folder, 9, "b"), weights(cohort.run.folder, 3, "b"))


def test_a_gradient_that_is_not_finite_is_not_learned(make_recipe: MakeRecipe, make_run: MakeRun) -> None:
    more = ("batch_size=20", "students.b.model=nets:BadGradientOnce")
    cohort = Cohort(make_run(make_recipe(*more))).train()
    assert not cohort.errors
    run = cohort.run
    assert values(run, "b", "train", "skipped") == {3: 1.0}
    assert values(run, "a", "train", "skipped") == {}
    assert set(values(run, "b", "train", "loss")) == {0, 1, 2, 4, 5}
    for value in weights(run.folder, 6, "b").values():
        assert bool(torch.isfinite(value).all())
    (note,) = [event.text for event in cohort.events if isinstance(event, Note | Warned)]
    assert "gradient of b at step 3 is NaN" in note


def test_a_step_without_a_gradient_leaves_the_weights_and_is_warned_of_once(
    make_recipe: MakeRecipe, make_run: MakeRun
) -> None:
    more = ("batch_size=20", "students.b.model=nets:BadGradient", "epochs=3", "checkpoint.keep=9")
    cohort = Cohort(make_run(make_recipe(*more))).train()
    assert not cohort.errors
    assert set(values(cohort.run, "b", "train", "skipped")) == {3, 4, 5, 6, 7, 8}
    before, after = (weights(cohort.run.folder, step, "b") for step in (3, 9))
    for name in ("linear.weight", "linear.bias"):
        assert torch.equal(before[name], after[name])
    assert len([event for event in cohort.events if isinstance(event, Note | Warned)]) == 1


def test_replicas_skip_a_bad_gradient_together(make_recipe: MakeRecipe, make_run: MakeRun) -> None:
    more = ("students.b.replicas=2", "batch_size=20", "students.b.model=nets:BadGradientInOne")
    run = make_run(make_recipe(*more))
    train(run)
    assert values(run, "b", "train", "skipped") == {3: 1.0}
    for value in weights(run.folder, 6, "b").values():
        assert bool(torch.isfinite(value).all())


def test_too_many_bad_gradients_are_a_failure(make_recipe: MakeRecipe, make_run: MakeRun) -> None:
    more = ("batch_size=20", "students.b.model=nets:BadGradient", "epochs=6", "failure.max_bad_steps=4")
    cohort = Cohort(make_run(make_recipe(*more))).train()
    error = cohort.errors["a"]
    assert isinstance(error, NonFiniteLogits)
    # Steps 3 to 7, each reported with the step after; test passes and checkpoints do not end the row.
    assert (error.student, error.step) == ("b", 8)
    assert "5 steps in a row" in error.message


@pytest.mark.parametrize("policy", ["rollback", "continue"])
def test_too_many_bad_steps_are_a_failure(
    policy: str, inject: Inject, make_recipe: MakeRecipe, make_run: MakeRun
) -> None:
    for step in range(6, 18):
        inject("coordinator", "gather", step, "hold", until="returns")
    more = ("students.b.model=nets:NotFinite", "failure.max_bad_steps=2", f"failure.policy={policy}")
    run = make_run(make_recipe(*CONTINUE, *more, "epochs=6"))
    with pytest.raises(NonFiniteLogits, match="max_bad_steps") as caught:
        train(run)
    assert caught.value.student == "b"
    steps = [cause["step"] for cause in read_record(run.folder)["failures"]["causes"]]
    # Back at the same checkpoint it fails at the same step; further on, at others, until it is enough.
    assert steps[0] == 5
    assert steps == sorted(set(steps))
    assert len(steps) == (1 if policy == "rollback" else 3)


def test_a_loss_that_explodes_is_warned_of(make_recipe: MakeRecipe, make_run: MakeRun) -> None:
    cohort = Cohort(make_run(make_recipe("students.b.model=nets:Explodes", "epochs=10", "batch_size=20")))
    cohort.train()
    assert not cohort.errors
    notes = [event.text for event in cohort.events if isinstance(event, Warned)]
    (note,) = [text for text in notes if "explodes" in text]
    assert note.startswith("b:")
    assert "step 24" in note

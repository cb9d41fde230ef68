"""Several coordinators: the weights and metrics of a run with one, whatever happens to an assistant.

On Ray: on_ray/test_equals_on_ray.py.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from cohorts import Cohort, Inject, MakeRecipe, assert_same, recipe_text, train, weights
from equality import check, recipe_for
from torch import Tensor

from kdcl_dist.config.recipe_file import parse_recipe
from kdcl_dist.errors import (
    KdclError,
    LabelMismatch,
    MisalignedIds,
    ShapeMismatch,
    StudentFailed,
    StudentLost,
)
from kdcl_dist.exchange.message import Message
from kdcl_dist.membership.heartbeat import Heartbeat
from kdcl_dist.membership.rendezvous import Joins, Rendezvous
from kdcl_dist.run.checkpoint import latest
from kdcl_dist.run.events import Note, Started, Warned
from kdcl_dist.run.metrics import read_metrics
from kdcl_dist.run.prepare import prepare
from kdcl_dist.run.process_log import log_of
from kdcl_dist.run.record import read_record
from kdcl_dist.run.run import Run

MakeRun = Callable[..., Run]
#: Two epochs of three steps.
OVERRIDES = ("batch_size=20", "failure.max_failures=3", "limits.step_s=150", "students.b.model=nets:Plain")
ASSISTANT = "coordinator/1"


def metrics(run: Run) -> dict[tuple[Any, ...], float]:
    """All recorded figures but durations."""
    rows = read_metrics(run.folder).to_pylist()
    named = {tuple(row[key] for key in ("student", "epoch", "step", "split", "name")): row for row in rows}
    assert len(named) == len(rows), "a figure is recorded twice"
    return {key: row["value"] for key, row in named.items() if not row["name"].endswith("_s")}


def assert_same_metrics(run: Run, other: Run) -> None:
    """Equal but for the order in which the sums of coordinators add up."""
    found, expected = metrics(run), metrics(other)
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        same = math.isnan(value) and math.isnan(found[key])
        assert same or found[key] == pytest.approx(value, rel=1e-12, abs=1e-12), key


@pytest.mark.parametrize("method", ["naive", "linear", "min_logit", "general", "mean", "teacher"])
def test_weights_and_metrics_are_those_of_one_coordinator(
    method: str, make_recipe: MakeRecipe, make_run: MakeRun, tmp_path: Path
) -> None:
    more = ["analysis.every_steps=1", "accumulate=2"] if method in ("general", "mean") else []
    more.append("failure.verify_every_steps=2")  # changes nothing
    runs = [
        make_run(recipe_for(method, make_recipe, tmp_path, *more, f"coordinators={count}"))
        for count in (1, 3)
    ]
    for run in runs:
        cohort = Cohort(run).train()
        assert not cohort.errors
        assert set(cohort.finished.values()) == {True}
        check(run)
    assert_same_metrics(*reversed(runs))


def test_a_student_with_bad_numbers_is_left_out_of_all_shares(
    make_recipe: MakeRecipe, make_run: MakeRun
) -> None:
    more = ("batch_size=20", "students.b.model=nets:NotFiniteInOneRow", "analysis.every_steps=1")
    fields = (("coordinators=1",), ("coordinators=2", "failure.verify_every_steps=1"))
    runs = [make_run(make_recipe(*more, *own)) for own in fields]
    for run in runs:
        assert not Cohort(run).train().errors
    assert metrics(runs[1])["b", 1, 3, "train", "skipped"] == 1
    for name in ("a", "b"):
        assert_same(*(weights(run.folder, 6, name) for run in runs))
    assert_same_metrics(*reversed(runs))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda ids, logits, labels: (ids + 1000 * (ids == ids.max()), logits, labels), MisalignedIds),
        (lambda ids, logits, labels: (ids, logits, labels ^ (ids == ids.max())), LabelMismatch),
        (lambda *rows: tuple(column[rows[0] < rows[0].max()] for column in rows), ShapeMismatch),
    ],
    ids=["ids", "labels", "rows"],
)
def test_an_assistant_refuses_what_does_not_fit(
    change: Callable[..., tuple[Tensor, Tensor, Tensor]],
    expected: type[KdclError],
    make_recipe: MakeRecipe,
    make_run: MakeRun,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What is wrong lies in the last share."""
    put = Message.write_rows

    def changed(message: Message, ids: Tensor, logits: Tensor, labels: Tensor | None = None) -> None:
        if labels is not None and (int(message.header["sender"]), int(message.header["step"])) == (1, 4):
            ids, logits, labels = change(ids, logits, labels)
        put(message, ids, logits, labels)

    with monkeypatch.context() as patch:
        patch.setattr(Message, "write_rows", changed)
        cohort = Cohort(make_run(make_recipe("batch_size=20", "coordinators=2"))).train()
    assert cohort.errors.keys() == {"a", "b", ASSISTANT, "coordinator"}
    assert len({str(error) for error in cohort.errors.values()}) == 1, cohort.errors
    error = cohort.errors["coordinator"]
    assert isinstance(error, expected)
    assert (error.step, error.student in ("a", "b")) == (4, True)


@pytest.fixture(scope="module")
def undisturbed(data: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The run with one coordinator and without a fault."""
    recipe = parse_recipe(recipe_text(data), OVERRIDES)
    run = prepare(recipe, str(tmp_path_factory.mktemp("runs")), "whole", resume=False, warn=print)
    assert not Cohort(run).train().errors
    return run


@pytest.mark.parametrize(
    ("policy", "phase", "how"),
    [
        ("continue", "gather", "kill"),
        ("rollback", "ensemble", "kill"),
        ("continue", "ensemble", "exception"),
        ("continue", "broadcast", "kill"),
        ("rollback", "broadcast", "stop"),
    ],
)
def test_an_assistant_is_replaced_and_nothing_is_lost(
    policy: str,
    phase: str,
    how: str,
    inject: Inject,
    make_recipe: MakeRecipe,
    make_run: MakeRun,
    undisturbed: Run,
) -> None:
    """With `continue` the students keep their state, and begin the step anew that nobody has learned from."""
    inject(ASSISTANT, phase, 4, how)
    limit = ["limits.step_s=12", "limits.startup_s=20"] if how == "stop" else []  # as in test_hangs.py
    run = make_run(make_recipe(*OVERRIDES, "coordinators=3", f"failure.policy={policy}", *limit))
    events = train(run)
    for name in ("a", "b"):
        assert_same(weights(run.folder, 6, name), weights(undisturbed.folder, 6, name))
    assert_same_metrics(run, undisturbed)
    started = [event for event in events if isinstance(event, Started)]
    assert [event.step for event in started] == [0, 3 if policy == "rollback" else 4]
    assert len({event.placement["b"]["pid"] for event in started}) == 1, "only the assistant is replaced"
    (cause,) = read_record(run.folder)["failures"]["causes"]
    assert (cause["student"], cause["step"]) == (ASSISTANT, 4)
    (note,) = [event.text for event in events if isinstance(event, Note) and "failure 1" in event.text]
    assert note.startswith(f"process {ASSISTANT!r}, step 4")
    assert run.folder.read(log_of(ASSISTANT))


@pytest.mark.parametrize("who", ["coordinator", "b"])
def test_assistants_outlive_the_others(
    who: str, inject: Inject, make_recipe: MakeRecipe, make_run: MakeRun, undisturbed: Run
) -> None:
    inject(who, "broadcast", 4, "kill")
    run = make_run(make_recipe(*OVERRIDES, "coordinators=2"))
    train(run)
    for name in ("a", "b"):
        assert_same(weights(run.folder, 6, name), weights(undisturbed.folder, 6, name))
    assert_same_metrics(run, undisturbed)
    assert run.folder.read(log_of(ASSISTANT)).count(b"starts") == 1


def test_a_stopped_run_goes_on_with_another_number(make_recipe: MakeRecipe, make_run: MakeRun) -> None:
    cohort = Cohort(make_run(make_recipe("coordinators=3"), "r")).train(stop=lambda: True)
    assert not cohort.errors
    assert set(cohort.finished.values()) == {False}
    run = make_run(make_recipe("coordinators=2"), "r", resume=True)
    assert run.step == 1
    assert not Cohort(run).train().errors
    check(run)


def test_with_stop_the_students_save_what_they_learned(
    inject: Inject, make_recipe: MakeRecipe, make_run: MakeRun, undisturbed: Run
) -> None:
    """The generation that only saves does without assistants; a resumed run may have another number."""
    inject(ASSISTANT, "ensemble", 4, "kill")
    recipe = make_recipe(*OVERRIDES, "coordinators=2", "failure.policy=stop")
    run = make_run(recipe, "r")
    with pytest.raises(StudentLost) as caught:
        train(run)
    assert caught.value.student == ASSISTANT
    saved = latest(run.folder, print)
    assert saved is not None
    assert saved.step == 5
    train(make_run(make_recipe(*OVERRIDES, "coordinators=3"), "r", resume=True))
    for name in ("a", "b"):
        assert_same(weights(run.folder, 6, name), weights(undisturbed.folder, 6, name))


def test_with_stop_an_assistant_that_joins_before_the_students_is_none_of_them(
    make_recipe: MakeRecipe, make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = make_recipe(*OVERRIDES, "coordinators=2", "failure.policy=stop")
    enter, assemble = Heartbeat.enter, Rendezvous.assemble

    def entered(heartbeat: Heartbeat, phase: str, step: int | None = None) -> None:
        enter(heartbeat, phase, step)
        if (threading.current_thread().name, phase, heartbeat.step) == ("b", "forward", 4):
            raise ArithmeticError("an injected fault")

    def together(rendezvous: Rendezvous, awaited: Sequence[int], limit_s: float) -> Joins:
        return assemble(rendezvous, sorted({*awaited, recipe.members.index(ASSISTANT)}), limit_s)

    monkeypatch.setattr(Heartbeat, "enter", entered)
    monkeypatch.setattr(Rendezvous, "assemble", together)
    cohort = Cohort(make_run(recipe)).train()
    assert {type(error) for error in cohort.errors.values()} == {StudentFailed}
    assert not [event for event in cohort.events if isinstance(event, Warned)]
    saved = latest(cohort.run.folder, print)
    assert saved is not None
    assert saved.step == 5
    assert "a" in saved.parts

"""Processes that hang where nobody waits for them in an exchange: they are replaced, under each policy."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from cohorts import Inject, MakeRecipe, assert_same, recipe_text, train, weights

from kdcl_dist.config.recipe_file import parse_recipe
from kdcl_dist.run.prepare import prepare
from kdcl_dist.run.record import read_record
from kdcl_dist.run.run import Run
from kdcl_dist.run.storage import Folder

MakeRun = Callable[..., Run]
OVERRIDES = ("failure.max_failures=3", "batch_size=20", "students.b.model=nets:Plain")
#: Where a process hangs: what the others wait for it at a step, longer than a machine stands still, or before
#: it joins.
LIMITS = ("limits.step_s=12", "limits.startup_s=20")


@pytest.fixture(scope="module")
def undisturbed(data: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """The run without a fault; after it a process starts at once, since the server has imported all."""
    recipe = parse_recipe(recipe_text(data), OVERRIDES)
    run = prepare(recipe, str(tmp_path_factory.mktemp("runs")), "whole", resume=False, warn=print)
    train(run)
    return run.folder


def causes(run: Run) -> list[str]:
    return [cause["error"] for cause in read_record(run.folder)["failures"]["causes"]]


def assert_as_undisturbed(run: Run, undisturbed: Folder) -> None:
    for name in ("a", "b"):
        assert_same(weights(run.folder, 6, name), weights(undisturbed, 6, name))
    assert read_record(run.folder)["results"] == read_record(undisturbed)["results"]


@pytest.mark.parametrize(
    ("policy", "where"), [("rollback", ("broadcast", "gather")), ("continue", ("gather", "gather"))]
)
def test_two_that_hang_at_the_same_step_are_one_failure(
    policy: str,
    where: tuple[str, str],
    inject: Inject,
    make_recipe: MakeRecipe,
    make_run: MakeRun,
    undisturbed: Folder,
) -> None:
    for name, phase in zip("ab", where, strict=True):
        inject(name, phase, 4, "stop")
    run = make_run(make_recipe(*OVERRIDES, *LIMITS, f"failure.policy={policy}", "failure.min_students=1"))
    train(run)
    assert causes(run) == ["StudentLost"]
    assert set(read_record(run.folder)["results"]) == {"a", "b", "ensemble"}
    if policy == "rollback":
        assert_as_undisturbed(run, undisturbed)


def test_a_student_that_hangs_with_the_coordinator_is_replaced_too(
    inject: Inject, make_recipe: MakeRecipe, make_run: MakeRun, undisturbed: Folder
) -> None:
    stopped = inject("coordinator", "ensemble", 4, "stop")
    # A student that stops earlier may not have sent its logits: the coordinator finds it, and stops later.
    inject("b", "broadcast", 4, "hold", until=stopped)
    inject("b", "broadcast", 4, "stop")
    run = make_run(make_recipe(*OVERRIDES, *LIMITS))
    train(run)
    assert causes(run) == ["CoordinatorLost", "StartupTimeout"], "the new store knows no heartbeat of it"
    assert_as_undisturbed(run, undisturbed)


def test_one_that_stops_in_a_checkpoint_is_found_long_before_a_storage_would_be_too_slow(
    inject: Inject, make_recipe: MakeRecipe, make_run: MakeRun, undisturbed: Folder
) -> None:
    inject("b", "checkpoint", 3, "stop")
    run = make_run(make_recipe(*OVERRIDES, "limits.step_s=12", "limits.startup_s=1500"))
    train(run)
    (cause,) = read_record(run.folder)["failures"]["causes"]
    assert cause["error"] == "StudentLost"
    assert cause["student"] == "b"
    assert "b did not answer within limits.step_s" in cause["message"]
    assert_as_undisturbed(run, undisturbed)


def test_a_coordinator_that_stops_in_a_checkpoint_is_found_as_soon(
    inject: Inject, make_recipe: MakeRecipe, make_run: MakeRun, undisturbed: Folder
) -> None:
    inject("coordinator", "checkpoint", 3, "stop")
    run = make_run(make_recipe(*OVERRIDES, "limits.step_s=12", "limits.startup_s=1500"))
    train(run)
    assert causes(run) == ["CoordinatorLost"]
    assert_as_undisturbed(run, undisturbed)


def test_one_that_hangs_at_the_first_start_is_replaced(
    inject: Inject, make_recipe: MakeRecipe, make_run: MakeRun, undisturbed: Folder
) -> None:
    inject("b", "start", 0, "stop")
    run = make_run(make_recipe(*OVERRIDES, *LIMITS))
    train(run)
    assert causes(run) in (["StudentLost"], ["StartupTimeout"]), "with or without a heartbeat before it"
    assert_as_undisturbed(run, undisturbed)


def test_a_replacement_that_hangs_is_replaced(
    inject: Inject, make_recipe: MakeRecipe, make_run: MakeRun, undisturbed: Folder
) -> None:
    inject("b", "start", 0, "stop", after=inject("b", "forward", 4, "kill"))
    run = make_run(make_recipe(*OVERRIDES, *LIMITS))
    train(run)
    assert len(causes(run)) == 2
    assert_as_undisturbed(run, undisturbed)


def test_a_replacement_that_hangs_while_the_others_go_on_is_replaced(
    inject: Inject, make_recipe: MakeRecipe, make_run: MakeRun, undisturbed: Folder
) -> None:
    inject("b", "start", 0, "block", after=inject("b", "forward", 4, "kill"))
    inject("coordinator", "gather", 9, "hold", until="returns")
    more = ("failure.policy=continue", "failure.min_students=1", "epochs=4", "limits.step_s=150")
    run = make_run(make_recipe(*OVERRIDES, *LIMITS, *more))
    train(run)
    assert len(causes(run)) == 2
    (absence,) = read_record(run.folder)["absences"]
    assert (absence["student"], absence["until"]) == ("b", 10)
    assert set(read_record(run.folder)["results"]) == {"a", "b", "ensemble"}

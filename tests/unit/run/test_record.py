"""run.json: fields, owner, failures and generations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from cohorts import MakeRecipe

from kdcl_dist.errors import DataError, RunFolderError, StudentLost
from kdcl_dist.run.record import (
    check_owner,
    next_generation,
    past_failures,
    read_record,
    record_failure,
    record_survival,
    recorded_failure,
    update_record,
)
from kdcl_dist.run.run import Run

LOST = StudentLost("gone", student="a", step=3)


@pytest.fixture
def run(make_recipe: MakeRecipe, make_run: Callable[..., Run]) -> Run:
    return make_run(make_recipe(), "r")


def later(run: Run) -> Run:
    """The same run, as another process starts it."""
    return replace(run, id="later")


def test_an_update_keeps_the_other_fields(run: Run) -> None:
    update_record(run.folder, one=1, two=2)
    update_record(run.folder, two=3)
    found = read_record(run.folder)
    assert (found["one"], found["two"], found["state"]) == (1, 3, "starting")
    assert found["updated"].endswith("+00:00")


def test_no_record_is_empty_and_a_damaged_one_is_named(run: Run) -> None:
    run.folder.write("run.json", b"{")
    with pytest.raises(RunFolderError, match=r"run\.json is damaged"):
        read_record(run.folder)
    run.folder.delete_file("run.json")
    assert read_record(run.folder) == {}
    assert recorded_failure(run) is None
    assert past_failures(run) == []
    assert next_generation(run) == 0


def test_the_latest_start_owns_the_folder(run: Run) -> None:
    check_owner(run)
    update_record(run.folder, owner="later")
    check_owner(later(run))
    with pytest.raises(RunFolderError, match=r"was resumed by another process \(later\)"):
        check_owner(run)


def test_the_first_cause_of_a_failure_is_read_again(run: Run) -> None:
    assert recorded_failure(run) is None
    record_failure(run, DataError("no disk", student="b"))
    assert read_record(run.folder)["state"] == "failed"
    found = recorded_failure(run)
    assert isinstance(found, DataError)
    assert str(found) == "student 'b': no disk"


def test_a_failure_is_not_recorded_in_the_run_of_another_start(run: Run) -> None:
    update_record(run.folder, owner="later")
    record_failure(run, DataError("no disk"))
    assert recorded_failure(run) is None


def test_a_failing_storage_does_not_hide_a_cause(run: Run) -> None:
    run.folder.write("run.json", b"{")
    record_failure(run, DataError("no disk"))  # raises nothing


def test_survived_failures_belong_to_one_start(run: Run) -> None:
    record_survival(run, [LOST, LOST])
    assert [error.to_dict() for error in past_failures(run)] == [LOST.to_dict()] * 2
    assert past_failures(later(run)) == []


def test_generations_are_counted_within_one_start(run: Run) -> None:
    assert next_generation(run) == 0
    update_record(run.folder, generation={"run": run.id, "number": 4})
    assert next_generation(run) == 5
    assert next_generation(later(run)) == 0

"""Workers that disagree on versions, data or schedule are named, with the worker that they differ from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from cohorts import MakeRecipe

from kdcl_dist.coordinator.agreement import check_agreement, check_same_data
from kdcl_dist.errors import DataError, KdclError, RunFolderError
from kdcl_dist.membership.rendezvous import WorkerInfo
from kdcl_dist.run.checkpoint import Manifest
from kdcl_dist.run.record import update_record
from kdcl_dist.run.run import Run

DATA = {"train": "1f", "test": "2e"}
FIRST = WorkerInfo("a", "h1", 1, "cpu", 10, 4, {"epochs": 2}, DATA, {"torch": "2.6", "numpy": "2.0"})


def test_workers_may_differ_in_what_is_their_own() -> None:
    check_agreement([FIRST])
    check_agreement([FIRST, replace(FIRST, name="b", host="h2", pid=2, device="cuda", parameters=99)])


@pytest.mark.parametrize(
    ("change", "kind", "words"),
    [
        ({"versions": {"torch": "2.7", "numpy": "2.0"}}, KdclError, "runs torch 2.7, but 'a' on h1 runs 2.6"),
        ({"versions": {"torch": "2.6"}}, KdclError, "runs numpy None, but 'a' on h1 runs 2.0"),
        ({"data": DATA | {"test": "3d"}}, DataError, "reads other data than 'a' on h1"),
        ({"schedule": {"epochs": 3}}, DataError, "fingerprints or sizes differ"),
        ({"classes": 5}, DataError, "fingerprints or sizes differ"),
    ],
)
def test_the_odd_worker_is_named(change: dict[str, Any], kind: type[KdclError], words: str) -> None:
    odd = replace(FIRST, name="c", host="h3", **change)
    with pytest.raises(kind) as caught:
        check_agreement([FIRST, replace(FIRST, name="b"), odd])
    assert type(caught.value) is kind
    assert (caught.value.student, caught.value.host) == ("c", "h3")
    assert words in caught.value.message


def test_a_resumed_run_reads_the_same_data(make_recipe: MakeRecipe, make_run: Callable[..., Run]) -> None:
    run = make_run(make_recipe())
    resumed = replace(run, start=Manifest(3, {}))
    check_same_data(resumed, FIRST)  # no data are recorded yet
    update_record(run.folder, data=DATA)
    check_same_data(resumed, FIRST)
    other = replace(FIRST, data=DATA | {"train": "0c"})
    check_same_data(run, other)
    with pytest.raises(RunFolderError, match="cannot be resumed with other data"):
        check_same_data(resumed, other)

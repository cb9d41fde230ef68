"""Workers that disagree on versions, data or schedule are named, with the worker that they differ from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cohorts import Cohort, MakeRecipe
from stored_files import write_logits

from kdcl_dist.coordinator.agreement import changed_devices, check_agreement, check_same_data, check_stored
from kdcl_dist.coordinator.stored_members import StoredMembers
from kdcl_dist.errors import DataError, KdclError, RunFolderError
from kdcl_dist.membership.rendezvous import WorkerInfo
from kdcl_dist.run.checkpoint import Manifest
from kdcl_dist.run.events import Warned
from kdcl_dist.run.record import read_record, update_record
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


def test_all_coordinators_read_the_same_logits(
    data: dict[str, str], make_recipe: MakeRecipe, make_run: Callable[..., Run], tmp_path: Path
) -> None:
    file = write_logits(tmp_path / "t.arrow", data["train"], 0)
    run = make_run(make_recipe(f"students=[{{name: a, model: mlp}}, {{name: t, logits: '{file}'}}]"))
    stored = StoredMembers.open(run.recipe)
    worker = replace(FIRST, data={"train": stored.files[1].info.data}, classes=4)
    assistant = replace(FIRST, name="coordinator/1", host="h3", data=stored.fingerprints)
    check_stored(run, stored, worker, [assistant])
    for other in ({"t": "1f"}, {}):
        with pytest.raises(DataError, match="reads other logits of 't' than the coordinator") as caught:
            check_stored(
                run, stored, worker, [assistant, replace(assistant, name="coordinator/2", data=other)]
            )
        assert (caught.value.student, caught.value.host) == ("coordinator/2", "h3")
    with pytest.raises(DataError, match="another data set"):
        check_stored(run, stored, replace(worker, data={"train": "2e"}))
    resumed = replace(run, start=Manifest(3, {}))
    check_stored(resumed, stored, worker)
    update_record(run.folder, stored={"t": "0" * 64})
    with pytest.raises(RunFolderError, match="cannot be resumed with other logits of 't'"):
        check_stored(resumed, stored, worker)


@pytest.mark.parametrize(
    ("before", "now", "changed"),
    [
        ("cpu", "cpu", []),
        ("cpu", "NVIDIA T4 (GPU 1)", ["a: cpu -> NVIDIA T4 (GPU 1)"]),
        ("NVIDIA T4 (GPU 0)", "NVIDIA T4 (GPU 1)", []),
        ("NVIDIA T4", "NVIDIA T4 (GPU 1)", []),  # as 0.1.0 recorded it
        ("NVIDIA T4 (GPU 0)", "NVIDIA T4 (MIG-7a)", []),
        ("NVIDIA T4 (GPU 0)", "NVIDIA H200 (GPU 0)", ["a: NVIDIA T4 -> NVIDIA H200 (GPU 0)"]),
        ("NVIDIA T4 (GPU 0)", "cpu", ["a: NVIDIA T4 -> cpu"]),
    ],
)
def test_another_kind_of_device_is_told(
    before: str, now: str, changed: list[str], make_recipe: MakeRecipe, make_run: Callable[..., Run]
) -> None:
    run, worker = make_run(make_recipe()), replace(FIRST, device=now)
    assert changed_devices(run, [worker]) == [], "nothing is recorded yet"
    update_record(run.folder, placement={"a": {"device": before}, "b": {"device": "cpu"}})
    assert changed_devices(run, [worker]) == changed
    update_record(run.folder, placement={"a": {"pid": 3}})
    assert changed_devices(run, [worker]) == []


def test_a_resumption_on_another_device_is_told(
    make_recipe: MakeRecipe, make_run: Callable[..., Run]
) -> None:
    recipe, calls = make_recipe("epochs=1"), iter([False, True, True, True])
    run = make_run(recipe, "moved")
    assert not Cohort(run).train(stop=lambda: next(calls, True)).errors
    places = read_record(run.folder)["placement"]
    update_record(run.folder, placement=places | {"b": places["b"] | {"device": "NVIDIA T4 (GPU 0)"}})
    resumed = Cohort(make_run(recipe, "moved", resume=True)).train()
    assert not resumed.errors
    (warning,) = (event.text for event in resumed.events if isinstance(event, Warned))
    assert warning == "results may differ in the last bits: b: NVIDIA T4 -> cpu (another device)"

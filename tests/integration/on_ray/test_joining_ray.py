"""A cohort on Ray changes by command while it trains, and the others keep their processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from cohorts import Inject, MakeRecipe
from equality import check

from kdcl_dist import training
from kdcl_dist.launch.ray import newcomers
from kdcl_dist.run.cohort_requests import ask
from kdcl_dist.run.events import CheckpointSaved, Event, Note, Started, Warned
from kdcl_dist.run.record import read_record
from kdcl_dist.run.run import Run, load_run
from kdcl_dist.run.storage import Folder


def adding(name: str, **fields: Any) -> Any:
    return {"add": {"name": name, "model": "mlp", **fields}}


#: What is asked for at the checkpoints of some steps: first of those that cannot be met.
ASKED: dict[int, list[Any]] = {
    3: [
        adding("x", weights="none.pt"),
        adding("big", resources={"cpu": 1000}),
        adding("c", optimizer={"lr": 0.02}),
        {"remove": "b"},
    ],
    9: [adding("y", resources={"cpu": 15}), {"remove": "a"}],
}


def test_one_joins_others_leave_and_the_newcomer_trains_on_alone(
    inject: Inject, make_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its process dies in its first epoch; the weights are those of the recipe that the folder has then."""
    inject("coordinator", "gather", 4, "hold", until="changes")
    killed = inject("c", "forward", 7, "kill")
    inject("coordinator", "gather", 10, "hold", after=killed, until="changes")
    folder, events = Folder(str(tmp_path / "runs/r")), list[Event]()

    def on_event(event: Event) -> None:
        events.append(event)
        if isinstance(event, CheckpointSaved) and event.step in ASKED:
            if event.step == 9:  # from now on nobody waits long for a place
                monkeypatch.setattr(newcomers, "ROOM_SHARE", 100)
            for request in ASKED[event.step]:
                ask(folder, request)

    recipe = make_recipe("epochs=5", "failure.max_failures=1", "limits.step_s=150")
    found = training.train(
        recipe, launcher="ray", storage=str(tmp_path / "runs"), name="r", on_event=on_event
    )
    assert found.finished
    assert killed.exists()
    stored, _ = load_run(folder.uri)
    assert [stored.cohort(epoch) for epoch in range(5)] == [[0, 1], [0, 1], [0, 2], [0, 2], [2]]
    check(Run(stored, "r", folder, None, "."))
    record = read_record(folder)
    assert [(entry["step"], entry["students"]) for entry in record["cohort"]] == [
        (0, ["a", "b"]),
        (6, ["a", "c"]),
        (12, ["c"]),
    ]
    assert [cause["student"] for cause in record["failures"]["causes"]] == ["c"]
    starts = [event.placement for event in events if isinstance(event, Started)]
    pids = {name: {placed[name]["pid"] for placed in starts if name in placed} for name in "abc"}
    assert {name: len(own) for name, own in pids.items()} == {"a": 1, "b": 1, "c": 2}
    lines = [event.text for event in events if isinstance(event, Note | Warned) and " join" in event.text]
    assert [line.partition(":")[0] for line in lines] == [
        "big does not join",
        "x does not join",
        "c joins after epoch 2",
        "c joins at step 6",
        "y does not join",
    ]
    assert "no host offers CPU 1000" in lines[0]
    assert "no place on the cluster for CPU 15 within 2 s (half of limits.startup_s)" in lines[4]

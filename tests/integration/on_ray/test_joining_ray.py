"""A cohort on Ray changes by command while it trains, and the others keep their processes."""

from __future__ import annotations

import os
import signal
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


def pids(events: list[Event], name: str) -> list[int]:
    """The processes of a student, by the starts of generations."""
    starts = [event.placement for event in events if isinstance(event, Started)]
    return list(dict.fromkeys(int(placed[name]["pid"]) for placed in starts if name in placed))


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def test_one_joins_others_leave_and_the_newcomer_trains_on_alone(
    inject: Inject, make_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its process dies, then its worker; the weights are those of the recipe that the folder has then."""
    asked: dict[int, list[Any]] = {  # at the checkpoints of some steps
        3: [
            adding("c", optimizer={"lr": 0.02}),
            adding("x", weights="none.pt"),
            adding("big", resources={"cpu": 1000}),
            {"remove": "b"},
        ],
        9: [adding("y", resources={"cpu": 15}), {"remove": "a"}],
    }
    inject("coordinator", "gather", 4, "hold", until="changes")
    killed = inject("c", "forward", 7, "kill")
    inject("coordinator", "gather", 10, "hold", after=killed, until="changes")
    folder, events = Folder(str(tmp_path / "runs/r")), list[Event]()

    def on_event(event: Event) -> None:
        events.append(event)
        if isinstance(event, CheckpointSaved) and event.step in asked:
            for request in asked.pop(event.step):
                ask(folder, request)
            if event.step == 9:
                monkeypatch.setattr(newcomers, "ROOM_SHARE", 100)  # from now on nobody waits long for a place
                os.kill(parent(parent(pids(events, "c")[-1])), signal.SIGKILL)

    recipe = make_recipe("epochs=5", "failure.max_failures=2", "limits.step_s=150")
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
    assert [cause["student"] for cause in record["failures"]["causes"]] == ["c", "c"]
    assert [len(pids(events, name)) for name in "abc"] == [1, 1, 3]
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

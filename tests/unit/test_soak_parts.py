"""The parts of the soaks: which faults are offered when, what is read of a run, and what counts as lost."""

from __future__ import annotations

import json
import math
import os
import time
from pathlib import Path

import pytest

from benchmarks.fault_pairs import STEPS_PER_EPOCH, Followed, at_once, follow, in_recovery, numbered, row
from benchmarks.soak.faults import Fault, draw
from benchmarks.soak.page import change_of
from benchmarks.soak.run import Soak
from benchmarks.soak.timeline import EventFile, outcomes


def write(path: Path, *events: dict[str, object]) -> None:
    with path.open("a") as file:
        file.writelines(json.dumps(event) + "\n" for event in events)


def offered(soak: Soak) -> list[int]:
    soak._offer()
    lines = (soak.folder / "faults.jsonl").read_text().splitlines()
    return [json.loads(line)["number"] for line in lines]


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))


def test_events_are_read_once_and_only_as_whole_lines(tmp_path: Path) -> None:
    events = EventFile(tmp_path / "events.jsonl")
    assert events.read() == []
    write(events.path, {"step": 1})
    with events.path.open("a") as file:
        file.write('{"st')
    assert events.read() == [{"step": 1}]
    with events.path.open("a") as file:
        file.write('ep": 2}\n{"cut off{"step": 3}\n')
    assert events.read() == [{"step": 1}, {"step": 2}]


def test_faults_are_offered_until_a_checkpoint_holds_their_step(tmp_path: Path) -> None:
    faults = [
        Fault(0, "a", "data", 4, "kill"),
        Fault(1, "b", "data", 14, "kill"),
        Fault(2, "a", "start", 0, "kill", after=1),
        Fault(3, "a", "data", 24, "kill"),
    ]
    soak = Soak(tmp_path / "run", faults, "local", [], 1.0)
    assert offered(soak) == [0, 1, 2, 3]
    write(soak.events.path, {"kind": "checkpoint", "step": 10})
    assert offered(soak) == [1, 2, 3], "a new process before its first step, after a fault at step 14"
    faults[1].marker(soak.folder).touch()
    assert soak._newly_met() == [faults[1]]
    assert offered(soak) == [2, 3]
    assert Soak(soak.folder, faults, "local", [], 1.0).met == {1}, "as another process finds it"


def test_the_same_seed_draws_the_same_faults_one_an_epoch() -> None:
    drawn = draw(50, 3, ["a", "b/0", "b/1"], 10)
    assert drawn == draw(50, 3, ["a", "b/0", "b/1"], 10)
    assert all(10 * n <= fault.step <= 10 * n + 10 for n, fault in enumerate(drawn))


@pytest.mark.parametrize("policy", ["rollback", "continue"])
def test_each_pair_has_an_epoch_and_follows_its_own_first_fault(policy: str) -> None:
    pairs = [*at_once(), *in_recovery(policy)]
    assert len({*pairs}) == len(pairs) > 100
    faults = numbered(pairs)
    assert [fault.number for fault in faults] == [*range(len(faults))]
    for first, second in zip(faults[::2], faults[1::2], strict=True):
        assert second.after in (None, first.number)
        assert first.step // STEPS_PER_EPOCH == first.number // 2
        assert second.step // STEPS_PER_EPOCH in (first.number // 2, 0)


def test_what_followed_a_pair_ends_with_the_checkpoint_after_it(tmp_path: Path) -> None:
    soak = Soak(tmp_path / "run", numbered([*at_once()][:2]), "local", [], 1.0)
    began = time.time()
    for number in (0, 1, 2):
        soak.faults[number].marker(soak.folder).touch()
        os.utime(soak.faults[number].marker(soak.folder), (began, began))
    write(
        soak.events.path,
        {"time": began - 1, "kind": "started", "step": 0},
        {"time": began + 5, "kind": "failure", "text": ""},
        {"time": began + 6, "kind": "started", "step": 0},
        {"time": began + 7, "kind": "checkpoint", "step": 10},
        {"time": began + 9, "kind": "started", "step": 10},
    )
    (_, second) = follow(soak, [{"time": began + 8, "text": "hangs"}])
    assert second.met == (True, False)
    assert (second.failures, second.wrong) == (1, ["hangs"])
    assert second.on_s == pytest.approx(6, abs=1)


def test_a_log_line_does_not_break_the_table() -> None:
    pair = next(at_once())
    line = row(Followed(pair, (True, True), 1.0, 1, ["the run hangs: coordinator | gave up"]))
    assert line.replace("\\|", "").count("|") == 6


def test_the_report_of_a_fault_names_its_process(tmp_path: Path) -> None:
    (tmp_path / "met").mkdir()
    fault = Fault(0, "a", "data", 14, "kill")
    fault.marker(tmp_path).touch()
    met_at = fault.marker(tmp_path).stat().st_mtime
    events = [
        {"time": met_at + 1, "kind": "failure", "text": "student 'b': died"},
        {"time": met_at + 2, "kind": "failure", "text": "student 'a': died"},
        {"time": met_at + 3, "kind": "started", "step": 10},
    ]
    (found,) = outcomes([fault], tmp_path, events)
    assert (found.found_s, found.on_s, found.lost) == (pytest.approx(2), pytest.approx(3), 4)


def test_a_loss_of_accuracy_beyond_chance_is_one() -> None:
    assert change_of([98.0, 97.0, 98.0], [95.0, 94.1, 95.0]).high < 0
    assert change_of([98.0, 97.0, 98.0], [98.5, 96.5, 98.0]).high > 0
    assert math.isnan(change_of([98.0], [90.0]).high)

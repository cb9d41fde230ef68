"""What a running cohort looks like, with and without a terminal."""

from __future__ import annotations

import io
from collections.abc import Sequence
from datetime import datetime

from rich.console import Console

from kdcl_dist.cli.training_display import Display, display, results_table
from kdcl_dist.run.events import CheckpointSaved, Ended, EpochEnded, Event, Note, Started, Stepped

PLACEMENT: dict[str, dict[str, str | int]] = {
    name: {"host": "10.0.0.7", "pid": 41, "device": "cpu", "parameters": 12345} for name in ("big", "small")
}
PLACEMENT["big"]["peak_memory"] = 1_312_400_000
TRAIN = {
    "big": {"loss": 1.5, "distillation_loss": 0.25, "top1": 0.5, "step_s": 0.08, "wait_s": 0.0},
    "small": {"loss": 2.5, "distillation_loss": 0.5, "top1": 0.25, "step_s": 0.08, "wait_s": 0.02},
    "ensemble": {"loss": 1.0, "top1": 0.625},
}
TEST = {name: {"loss": 1.0, "top1": 0.75, "top5": 0.875} for name in ("big", "small", "ensemble")}
STARTED = Started(["big", "small"], PLACEMENT, epochs=2, steps_per_epoch=10, step=0)
EVENTS: list[Event] = [
    Note("run folder [runs]/x"),
    STARTED,
    Stepped(4, TRAIN),
    EpochEnded(0, TRAIN, TEST),
    CheckpointSaved(10),
    Stepped(14, TRAIN),
    Ended(finished=True),
]


def show(*, terminal: bool, width: int = 110, events: Sequence[Event] = EVENTS) -> str:
    console = Console(file=io.StringIO(), force_terminal=terminal, width=width, color_system=None)
    with display(console) as shown:
        for event in events:
            shown.handle(event)
        if isinstance(shown, Display):
            shown.live.refresh()
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def without_times(text: str) -> list[str]:
    """The lines, each checked to begin with a time."""
    lines = [line.partition(" ") for line in text.splitlines()]
    assert all(datetime.fromisoformat(time).tzinfo for time, _, _ in lines)
    return [line for _, _, line in lines]


def test_plain_lines_where_there_is_no_terminal() -> None:
    assert without_times(show(terminal=False)) == [
        "run folder [runs]/x",
        "big: 12,345 parameters, cpu of 10.0.0.7, process 41, up to 1,312 MB of memory",
        "small: 12,345 parameters, cpu of 10.0.0.7, process 41",
        "start epoch=1/2 step=0/20 students=big,small",
        "epoch epoch=1/2 step=10/20 "
        "big.train.loss=1.5 small.train.loss=2.5 ensemble.train.loss=1 "
        "big.test.loss=1 big.test.top1=0.75 small.test.loss=1 small.test.top1=0.75 "
        "ensemble.test.loss=1 ensemble.test.top1=0.75",
        "end state=finished step=14 seconds=0",
    ]


def test_a_bar_and_a_row_a_student_on_a_terminal() -> None:
    text = show(terminal=True)
    last = text[text.rindex("epoch 2") :]
    assert "14/20" in last
    rows = {line.split()[0]: line.split()[1:] for line in last.splitlines()[1:] if line.strip()}
    assert rows["student"] == [
        "loss",
        "distillation",
        "train",
        "top-1",
        "%",
        "test",
        "top-1",
        "%",
        "step",
        "ms",
        "waits",
    ]
    assert rows["big"] == ["1.500", "0.250", "50.00", "75.00", "80.0", "0%"]
    assert rows["small"] == ["2.500", "0.500", "25.00", "75.00", "80.0", "25%"]
    assert rows["ensemble"] == ["1.000", "62.50", "75.00"]


def test_an_epoch_says_what_it_was_tested_on() -> None:
    val = {"big": {"loss": 1.0, "top1": 0.5}, "ensemble": {"loss": 1.0, "top1": 0.25}}
    lines = show(
        terminal=False, events=[STARTED, EpochEnded(0, TRAIN, {}, val), EpochEnded(1, TRAIN, TEST, val)]
    )
    first, second = without_times(lines)[-3:-1]
    assert first.endswith(" big.val.loss=1 big.val.top1=0.5 ensemble.val.loss=1 ensemble.val.top1=0.25")
    assert "test" not in first
    assert " ensemble.val.top1=0.25 big.test.loss=1 " in second
    *_, last, _ = without_times(show(terminal=False, events=[STARTED, EpochEnded(0, TRAIN, {})]))
    assert last.endswith(" ensemble.train.top1=0.625")
    text = show(terminal=True, events=[STARTED, EpochEnded(0, TRAIN, {}, val), EpochEnded(1, TRAIN, {})])
    assert "validation top-1 %" in text[text.rindex("steps") :]


def test_a_resumed_run_shows_where_it_is() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=100, color_system=None)
    with Display(console) as shown:
        shown.handle(Started(["big", "small"], PLACEMENT, epochs=4, steps_per_epoch=10, step=25))
        assert shown.progress.tasks[0].completed == 25
        shown.handle(Stepped(26, TRAIN))
        assert shown.progress.tasks[0].description == "epoch 3"


def test_the_final_table() -> None:
    console = Console(file=io.StringIO(), width=80)
    console.print(results_table(TEST, "test results"))
    assert isinstance(console.file, io.StringIO)
    assert all(word in console.file.getvalue() for word in ("big", "1.0000", "75.00", "87.50"))


def test_the_final_table_says_the_epochs() -> None:
    results = {
        "big": TEST["big"] | {"epoch": 30},
        "big/best": TEST["big"] | {"epoch": 12},
        "ensemble/best": TEST["big"],
    }
    console = Console(file=io.StringIO(), width=80)
    console.print(results_table(results, "test results"))
    assert isinstance(console.file, io.StringIO)
    rows = [line.strip("\u2502").split("\u2502") for line in console.file.getvalue().splitlines()[4:-1]]
    assert [[cell.strip() for cell in row][::4] for row in rows] == [
        ["big", "30"],
        ["big/best", "12"],
        ["ensemble/best", ""],
    ]

"""What a running cohort looks like, with and without a terminal."""

from __future__ import annotations

import io
from collections.abc import Sequence

from rich.console import Console

from kdcl_dist.cli.training_display import Display, results_table
from kdcl_dist.run.events import CheckpointSaved, EpochEnded, Event, Note, Started, Stepped

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
]


def show(*, terminal: bool, width: int = 110, events: Sequence[Event] = EVENTS) -> str:
    console = Console(file=io.StringIO(), force_terminal=terminal, width=width, color_system=None)
    with Display(console) as display:
        for event in events:
            display.handle(event)
        if terminal:
            display.live.refresh()
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_plain_lines_where_there_is_no_terminal() -> None:
    lines = show(terminal=False).splitlines()
    assert lines == [
        "run folder [runs]/x",
        "big: 12,345 parameters, cpu of 10.0.0.7, process 41, up to 1,312 MB of memory",
        "small: 12,345 parameters, cpu of 10.0.0.7, process 41",
        "epoch 1 of 2: test top-1 % big 75.00, small 75.00, ensemble 75.00",
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
    assert show(
        terminal=False, events=[STARTED, EpochEnded(0, TRAIN, {}, val), EpochEnded(1, TRAIN, TEST, val)]
    ).splitlines()[-2:] == [
        "epoch 1 of 2: validation top-1 % big 50.00, ensemble 25.00",
        "epoch 2 of 2: validation top-1 % big 50.00, ensemble 25.00; "
        "test top-1 % big 75.00, small 75.00, ensemble 75.00",
    ]
    (*_, last) = show(terminal=False, events=[STARTED, EpochEnded(0, TRAIN, {})]).splitlines()
    assert last == "epoch 1 of 2: train top-1 % big 50.00, small 25.00, ensemble 62.50"
    text = show(terminal=True, events=[STARTED, EpochEnded(0, TRAIN, {}, val), EpochEnded(1, TRAIN, {})])
    assert "validation top-1 %" in text[text.rindex("steps") :]


def test_a_resumed_run_shows_where_it_is() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=100, color_system=None)
    with Display(console) as display:
        display.handle(Started(["big", "small"], PLACEMENT, epochs=4, steps_per_epoch=10, step=25))
        assert display.progress.tasks[0].completed == 25
        display.handle(Stepped(26, TRAIN))
        assert display.progress.tasks[0].description == "epoch 3"


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

"""What a dry run tells, in words."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console

from kdcl_dist.cli.trial_display import memory_table, trial_lines
from kdcl_dist.run.usage import Usage
from kdcl_dist.trial import Trial

TRIAL = Trial(
    processes={
        "a": Usage("10.0.0.1", "cuda:0", 1_234_000_000, 5_000_000_000),
        "coordinator": Usage("10.0.0.1", "cpu", 471_000_000, None),
    },
    steps_s=[2.0, 0.5, 0.7, 0.6],
    steps_per_epoch=1000,
    epochs=90,
    checkpoint_bytes=440_000,
    checkpoints=3,
    metrics_bytes=20_000_000,
    data_wait=None,
)


def test_the_memory_of_each_process() -> None:
    console = Console(file=io.StringIO(), width=100)
    console.print(memory_table(TRIAL))
    assert isinstance(console.file, io.StringIO)
    rows = [line.replace("│", " ").split() for line in console.file.getvalue().splitlines()]
    assert ["a", "10.0.0.1", "cuda:0", "1,234", "MB", "5,000", "MB"] in rows
    assert ["coordinator", "10.0.0.1", "cpu", "471", "MB"] in rows


def test_times_and_sizes() -> None:
    assert trial_lines(TRIAL) == [
        "a step: 0.6 s (median of 3 after the first, which took 2 s with its warm-up)",
        "an epoch: about 0:10:00 for 1,000 such steps, without tests and checkpoints",
        "a checkpoint: 0.44 MB",
        "the run: at most about 21 MB (3 checkpoints and the metrics of 90 epochs), and its logs",
    ]
    assert trial_lines(replace(TRIAL, data_wait="a waits"))[-1] == "a waits"


def test_a_single_step_has_the_warm_up() -> None:
    single = replace(TRIAL, steps_s=[2.0], steps_per_epoch=4)
    assert trial_lines(single)[:2] == [
        "a step: at most 2 s (the first, with its warm-up; --dry-run 5 tells more)",
        "an epoch: about 8 s for 4 such steps, without tests and checkpoints",
    ]
    assert single.as_dict()["epoch_s"] == pytest.approx(8.0)

"""The tracker `csv`, read back as a spreadsheet reads it."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import pytest

from kdcl_dist.run.storage import Folder
from kdcl_dist.tracking.csv_file import CsvFile
from kdcl_dist.tracking.tracker import Point, TrackedRun


def run(folder: Path) -> TrackedRun:
    return TrackedRun("r", "group", None, Folder(str(folder)), "", {})


def point(student: str, epoch: int, split: str, name: str, value: float) -> Point:
    return Point(student, epoch, 2 * epoch, split, name, value, 0.0)


def epoch(number: int, value: float) -> list[Point]:
    return [
        point("b", number, "train", "loss", value),
        point("b", number, "train", "loss", value + 1),
        point("b", number, "train", "skipped", 1),
        point("b", number, "train", "skipped", 1),
        point("a", number, "train", "loss", math.inf),
        point("ensemble", number, "test", "top1", -value),
    ]


def read(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_line_for_each_epoch_and_student(tmp_path: Path) -> None:
    tracker = CsvFile()
    assert tracker.start(run(tmp_path)) is None
    tracker.log(epoch(1, 0.25))
    assert len(read(tmp_path)) == 3  # whole after each epoch
    tracker.log([*epoch(2, 0.5), point("a", 2, "val", "loss", math.nan)])
    tracker.finish("finished")
    columns = ["epoch", "step", "student", "test/top1", "train/loss", "train/skipped", "val/loss"]
    assert (tmp_path / "metrics.csv").read_text().splitlines()[0] == ",".join(columns)
    assert [tuple(line.values()) for line in read(tmp_path)] == [
        ("1", "2", "a", "", "inf", "", ""),
        ("1", "2", "b", "", "0.75", "2", ""),
        ("1", "2", "ensemble", "-0.25", "", "", ""),
        ("2", "4", "a", "", "inf", "", "nan"),
        ("2", "4", "b", "", "1", "2", ""),
        ("2", "4", "ensemble", "-0.5", "", "", ""),
    ]


def test_a_resumed_run_goes_on_and_replaces_what_it_repeats(tmp_path: Path) -> None:
    for numbers in ([1, 2, 3], [3, 4]):
        tracker = CsvFile()
        tracker.start(run(tmp_path))
        for number in numbers:
            tracker.log(epoch(number, number + len(numbers)))
    found = [(line["epoch"], line["test/top1"]) for line in read(tmp_path) if line["student"] == "ensemble"]
    assert found == [("1", "-4"), ("2", "-5"), ("3", "-5"), ("4", "-6")]


def test_names_are_no_formulas_and_have_no_control_characters(tmp_path: Path) -> None:
    tracker = CsvFile()
    tracker.start(run(tmp_path))
    for name in ("=cmd|'/C calc'!A0", "+1+1", "-a", "@SUM(1)", 'x\ny\t"z"', "\x1b[31m"):
        tracker.log([point(name, 1, "train", "loss", 1.0)])
    students = [line["student"] for line in read(tmp_path)]
    assert sorted(students) == sorted(
        ["'=cmd|'/C calc'!A0", "'+1+1", "'-a", "'@SUM(1)", 'x\\ny\\t"z"', "\\x1b[31m"]
    )
    again = CsvFile()
    again.start(run(tmp_path))
    again.log([point("=1", 2, "train", "loss", 1.0)])
    assert [line["student"] for line in read(tmp_path)] == [*students, "'=1"]


@pytest.mark.parametrize(
    "text", [b"", b"a,b\n1,2\n", b"epoch,student\nx,a\n", b"\xff\xfe", b'epoch,student\n"', b"epoch\n1\n"]
)
def test_another_file_in_its_place_begins_anew(text: bytes, tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_bytes(text)
    tracker = CsvFile()
    tracker.start(run(tmp_path))
    tracker.log(epoch(1, 1.0))
    assert [line["student"] for line in read(tmp_path)] == ["a", "b", "ensemble"]

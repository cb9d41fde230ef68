"""The files of examples/fashion/analysis.py: values and paired gains by seed, their intervals and marks."""

from __future__ import annotations

import csv
import math
from collections.abc import Collection, Mapping, Sequence
from copy import copy
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

from kdcl_dist.compare.significance import holm, t_test
from kdcl_dist.utils.intervals import Interval, mean_interval

__all__ = [
    "ENOUGH",
    "FEW",
    "METHODS",
    "PARTNERS",
    "SIZES",
    "BySeed",
    "Results",
    "compared",
    "direction",
    "grouped",
    "interval",
    "markdown",
    "marked",
    "mean",
    "minus",
    "shown",
]

#: Value by seed.
BySeed = Mapping[int, float]
METHODS = ("dml", "mean", "naive", "linear", "min_logit", "general")
#: The other network of a pair with the large one: suffix of its arms, and its name along the axis.
PARTNERS = {"_twin": "3 M (twin)", "_medium": "1 M (medium)", "": "0.3 M (small)", "_nano": "0.05 M (nano)"}
#: Training images a class: suffix of the arms.
SIZES = {50: "_50", 200: "", 1000: "_1000"}
#: The chance that any mark of a table is a mistake.
LEVEL = 0.05
#: The fewest seeds of an interval, and of a mark. Top-1 has steps of 0.01: two gains may be equal.
FEW, ENOUGH = 3, 5


class Results:
    """The files of a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.top1: dict[tuple[str, str], dict[int, float]] = {}
        self.loss: dict[tuple[str, str], dict[int, float]] = {}
        for row in _rows(folder / "results.csv"):
            key, seed = (row["arm"], row["student"]), int(row["seed"])
            self.top1.setdefault(key, {})[seed] = float(row["top1"])
            self.loss.setdefault(key, {})[seed] = float(row["loss"])
        self.figures: dict[tuple[str, str, str], dict[int, float]] = {}
        for row in _rows(folder / "analysis.csv"):
            what = row["arm"], row["student"], row["name"]
            self.figures.setdefault(what, {})[int(row["seed"])] = float(row["value"])
        self.noise: dict[tuple[str, str, float], dict[int, float]] = {}
        for row in _rows(folder / "noise.csv"):
            at = row["arm"], row["student"], float(row["deviation"])
            self.noise.setdefault(at, {})[int(row["seed"])] = float(row["loss"])

    def within(self, seeds: Collection[int]) -> Results:
        """The same with the top-1 of some seeds only."""
        found = copy(self)
        found.top1 = {
            at: {seed: value for seed, value in values.items() if seed in seeds}
            for at, values in self.top1.items()
        }
        return found

    def of(self, arm: str, student: str) -> BySeed:
        """Top-1 in % by seed."""
        return self.top1.get((arm, student), {})

    def cohort(self, arm: str) -> set[str]:
        """The students of an arm."""
        return {student for name, student in self.top1 if name == arm and student != "ensemble"}

    def gain(self, arm: str, student: str, base: str) -> BySeed:
        """The gain in points over an arm, of the seeds that both have.

        Without values where the two do not compare: for a frozen teacher, which is the network of the other
        arm itself, and for the ensemble of other students.
        """
        gain = minus(self.of(arm, student), self.of(base, student))
        compares = student != "ensemble" or self.cohort(arm) == self.cohort(base)
        return gain if compares and any(gain.values()) else {}

    def measured(self, arm: str, student: str, name: str) -> BySeed:
        """A figure of docs/analysis.md, as a mean over the run."""
        return self.figures.get((arm, student, name), {})

    def course(self, arm: str, student: str, name: str, borders: Sequence[int]) -> list[BySeed]:
        """A figure of docs/analysis.md as means over the epochs up to each border, from the one before."""
        wanted = (pc.field("arm") == arm) & (pc.field("student") == student) & (pc.field("name") == name)
        found: list[dict[int, list[float]]] = [{} for _ in borders]
        for row in pq.read_table(self.folder / "analysis.parquet", filters=wanted).to_pylist():
            place = sum(row["epoch"] >= border for border in borders[:-1])
            found[place].setdefault(row["seed"], []).append(row["value"])
        return [{seed: float(np.mean(each)) for seed, each in part.items()} for part in found]


def minus(own: BySeed, base: BySeed) -> dict[int, float]:
    """Differences of the seeds that both have, without the last bits that subtraction leaves."""
    return {seed: round(own[seed] - base[seed], 9) for seed in sorted(own) if seed in base}


def mean(values: Sequence[BySeed]) -> dict[int, float]:
    """The mean of the seeds that all have."""
    shared = set.intersection(*(set(each) for each in values)) if values else set()
    return {seed: float(np.mean([each[seed] for each in values])) for seed in sorted(shared)}


def interval(values: BySeed) -> Interval | None:
    """The mean with its interval, which fewer than `FEW` seeds do not have; None without any value."""
    if not values:
        return None
    found = mean_interval(list(values.values()))
    return found if len(values) >= FEW else Interval(found.value, math.nan, math.nan, math.nan)


def direction(found: Interval | None) -> int:
    """1 for an interval above 0, -1 for one below, 0 for one that is not clear of 0, and for none."""
    return (found.low > 0) - (found.high < 0) if found else 0


def _verdict(found: Interval | None) -> str:
    if found is None or math.isnan(found.low):
        return "has too few runs"
    return {1: "gains", -1: "loses", 0: "is not clear of zero"}[direction(found)]


def grouped(gains: Mapping[str, Interval | None]) -> str:
    """Names by what the intervals of their gains say, as a part of a sentence."""
    parts = []
    for verb in ("gains", "loses", "is not clear of zero", "has too few runs"):
        names = [name for name, found in gains.items() if _verdict(found) == verb]
        if names:
            parts.append(f"{verb} with " + " and ".join([*filter(None, [", ".join(names[:-1])]), names[-1]]))
    return "; ".join(parts)


def shown(found: Interval | None, sign: str = "", digits: int = 2) -> str:
    """An interval as text."""
    if found is None:
        return ""
    value = f"{found.value:{sign}.{digits}f}"
    return value if math.isnan(found.low) else f"{value} ± {found.half_width:.{digits}f}"


def marked(gains: Sequence[BySeed], digits: int = 2) -> list[str]:
    """Gains as text, in bold where they differ from 0 at `LEVEL` over all of them (paired t test, Holm).

    Those of fewer than `ENOUGH` seeds are not tested.
    """
    adjusted = holm([t_test(list(gain.values())) if len(gain) >= ENOUGH else math.nan for gain in gains])
    texts = [shown(interval(gain), "+", digits) for gain in gains]
    return [f"**{text}**" if p <= LEVEL else text for p, text in zip(adjusted, texts, strict=True)]


def compared(own: BySeed, base: BySeed, digits: int = 2) -> str:
    """Values as text, in brackets the difference from others."""
    difference = minus(own, base)
    rise = f" ({shown(interval(difference), '+', digits)})" if any(difference.values()) else ""
    return shown(interval(own), digits=digits) + rise


def markdown(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown, with numbers to the right."""
    lines = ["| " + " | ".join(heads) + " |", "| --- |" + " ---: |" * (len(heads) - 1)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))

"""Arms: each arm groups the runs whose recipes differ in the seed only."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from kdcl_dist.config.differences import are_of_one_arm, differences
from kdcl_dist.report.run_data import RunData
from kdcl_dist.utils.intervals import NO_INTERVAL, Interval, mean_interval

__all__ = ["Arm", "group"]


@dataclass
class Arm:
    """Runs of one recipe with different seeds.

    Attributes:
        label: the arm's unique name in the report.
        runs: all runs of the arm.
        changes: differences of the arm's recipe from the recipe of the first arm.
    """

    label: str
    runs: list[RunData]
    changes: list[str] = field(default_factory=list)

    @property
    def finished(self) -> list[RunData]:
        """The finished runs; no other run counts in a mean."""
        return [run for run in self.runs if run.state == "finished"]

    @property
    def repeated_seeds(self) -> list[int]:
        """Seeds that more than one finished run has."""
        counts = Counter(run.recipe.seed for run in self.finished)
        return [seed for seed, count in counts.items() if count > 1]

    def interval(self, student: str, name: str, factor: float = 1.0) -> tuple[Interval, int]:
        """The mean of a final test result over the finished runs with its 95% interval, and the number of
        runs with a finite result.

        The interval's value is NaN when no run has a finite result.
        """
        found = [factor * run.results().get(student, {}).get(name, math.nan) for run in self.finished]
        finite = [value for value in found if math.isfinite(value)]
        return (mean_interval(finite) if finite else NO_INTERVAL), len(finite)

    def gain(self, base: Arm, student: str, name: str, factor: float = 1.0) -> tuple[Interval, int]:
        """The mean difference from another arm, paired by seed, with its 95% interval, and how many pairs.

        The interval's value is NaN when no seed has a finite result in both arms.
        """
        own, other = (arm._by_seed(student, name, factor) for arm in (self, base))
        gains = [own[seed] - other[seed] for seed in own if seed in other]
        return (mean_interval(gains) if gains else NO_INTERVAL), len(gains)

    def _by_seed(self, student: str, name: str, factor: float) -> dict[int, float]:
        """The finite results of the finished runs; of runs with the same seed the last."""
        found = {
            run.recipe.seed: factor * run.results().get(student, {}).get(name, math.nan)
            for run in self.finished
        }
        return {seed: value for seed, value in found.items() if math.isfinite(value)}

    def curve(
        self, student: str, name: str, factor: float = 1.0, split: str = "test"
    ) -> list[tuple[float, float, float, float]]:
        """A test result over the epochs: (epoch, mean, low, high) of the finished runs, 95% interval.

        The curve has the epochs that all these runs have. low and high are NaN for a single run.
        """
        curves = [curve for run in self.finished if (curve := run.curve(split, student, name))]
        if not curves:
            return []
        by_epoch = [dict(curve.points()) for curve in curves]
        rows = []
        for epoch in sorted(set.intersection(*(set(points) for points in by_epoch))):
            mean, low, high, _ = mean_interval([factor * points[epoch] for points in by_epoch])
            rows.append((float(epoch), mean, low, high))
        return rows


def group(runs: Sequence[RunData]) -> list[Arm]:
    """Sort runs into arms, in the order of their first run."""
    arms: list[Arm] = []
    for run in runs:
        arm = next((arm for arm in arms if _are_of_one_arm(arm.runs[0], run)), None)
        if arm is None:
            arms.append(Arm(run.recipe.name, [run], _changes(arms[0].runs[0], run) if arms else []))
        else:
            arm.runs.append(run)
    for arm in arms:
        arm.label = _folder_name(arm.runs) or arm.label
    shared = {name for name, count in Counter(arm.label for arm in arms).items() if count > 1}
    for index, arm in enumerate(arms, 1):
        if arm.label in shared:
            arm.label = f"{index}: {arm.label}"
    return arms


def _folder_name(runs: Sequence[RunData]) -> str | None:
    """The arm's name in run folders that `kdcl compare` has named ARM-seedN; None for other folders."""
    names = {run.label.removesuffix(f"-seed{run.recipe.seed}") for run in runs}
    seeded = all(run.label.endswith(f"-seed{run.recipe.seed}") for run in runs)
    return names.pop() if len(names) == 1 and seeded else None


def _changes(first: RunData, other: RunData) -> list[str]:
    """The differences of two recipes besides name and seed."""
    return differences(first.recipe, other.recipe.model_copy(update={"seed": first.recipe.seed}))


def _are_of_one_arm(first: RunData, other: RunData) -> bool:
    if _folder_name([first, other]) is not None:
        return are_of_one_arm(first.recipe, other.recipe)
    return not _changes(first, other)

"""The protocol of a tracker: what it gets of a run, and when."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

import pyarrow as pa

from kdcl_dist.config.recipe_file import dump_recipe
from kdcl_dist.run.run import Run
from kdcl_dist.run.storage import Folder

__all__ = ["Point", "Status", "TrackedRun", "Tracker", "points_of"]

#: How a run, or one start of it, ended.
Status = Literal["finished", "interrupted", "failed"]
#: The splits whose rows have the number of their step, from 0 on; the others have the steps done before.
STEPWISE = ("train", "analysis")


class Point(NamedTuple):
    """One recorded value.

    Attributes:
        student: its name, or "ensemble"; with "/ema" for averaged weights.
        epoch: from 1 on.
        step: training steps that were done at that time.
        split: "train", "val", "test", "analysis", "window" or "holdout".
        name: of the metric, such as "loss".
        value: may be NaN or infinite.
        time: when the epoch was recorded, in seconds since 1970.
    """

    student: str
    epoch: int
    step: int
    split: str
    name: str
    value: float
    time: float


@dataclass(frozen=True)
class TrackedRun:
    """What a tracker is told of a run.

    Attributes:
        name: of the run.
        group: the recipe's name.
        id: what `start` returned at the run's first start; None at the first.
        folder: the run folder.
        recipe: the complete recipe, as YAML.
        hparams: its fields, as `students.small.optimizer.lr`.
    """

    name: str
    group: str
    id: str | None
    folder: Folder
    recipe: str
    hparams: Mapping[str, Any]

    @classmethod
    def of(cls, run: Run) -> TrackedRun:
        """What trackers are told of a run at its first start."""
        hparams = dict(_leaves(run.recipe.model_dump(mode="json", exclude={"tracking"})))
        return cls(run.name, run.recipe.name, None, run.folder, dump_recipe(run.recipe), hparams)


class Tracker(Protocol):
    """Gets the metrics of a run.

    All calls come from one thread of the coordinator's process. Whatever they raise, and however long they
    take, training goes on.
    """

    def start(self, run: TrackedRun) -> str | None:
        """Begin a run, or go on with it; returns the tracker's own id of the run, if it has one."""

    def log(self, points: Sequence[Point]) -> None:
        """Take the points of one epoch as they were recorded; after an exception they come again.

        They count as kept once the call returns.
        """

    def finish(self, status: Status) -> None:
        """End this start of the run."""


def points_of(rows: pa.Table, time: float, every_steps: int = 1) -> list[Point]:
    """The rows of an epoch as points; of the rows of steps those of each `every_steps`-th step."""
    points = []
    for row in rows.to_pylist():
        stepwise = row["split"] in STEPWISE
        step = row["step"] + stepwise
        if not stepwise or step % every_steps == 0:
            where = row["student"], row["epoch"] + 1, step
            points.append(Point(*where, row["split"], row["name"], row["value"], time))
    return points


def _leaves(value: Any, path: str = "") -> list[tuple[str, Any]]:
    """Every value below the mappings and lists of a recipe with its path; an item's is its `name`, if any."""
    if isinstance(value, dict):
        children = list(value.items())
    elif isinstance(value, list):
        children = [(_key(item, index), item) for index, item in enumerate(value)]
    else:
        return [(path, value)]
    return [leaf for key, child in children for leaf in _leaves(child, f"{path}.{key}" if path else key)]


def _key(item: Any, index: int) -> str:
    return str(item.get("name", index)) if isinstance(item, dict) else str(index)

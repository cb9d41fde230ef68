"""A run folder as data for the report: means over each epoch instead of single steps."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from kdcl_dist.config.recipe import Recipe
from kdcl_dist.errors import RunFolderError
from kdcl_dist.run.data_wait import data_wait, last_times
from kdcl_dist.run.metrics import BEST, ENSEMBLE, averages_of, read_metrics
from kdcl_dist.run.record import read_record, scores_of
from kdcl_dist.run.run import load_run
from kdcl_dist.run.uris import displayed

__all__ = ["ENSEMBLE", "Curve", "Key", "RunData", "load"]


class Key(NamedTuple):
    """The quantity of a curve; kdcl_dist.run.metrics lists the names."""

    split: str
    student: str
    name: str


@dataclass(frozen=True)
class Curve:
    """One quantity over the epochs.

    Attributes:
        epochs: epochs counted from 1, increasing, int64, shape (E,).
        means: mean over the rows of each epoch, float64, shape (E,).
        counts: number of rows of each epoch, int64, shape (E,).
    """

    epochs: np.ndarray
    means: np.ndarray
    counts: np.ndarray

    def mean(self, after: int = 0) -> float:
        """Mean over all rows of the epochs later than `after`; NaN when there is no such row."""
        chosen = self.epochs > after
        weights = self.counts[chosen]
        return float(self.means[chosen] @ weights / weights.sum()) if chosen.any() else math.nan

    def points(self) -> list[tuple[float, float]]:
        """(epoch, mean) pairs."""
        return list(zip(self.epochs.tolist(), self.means.tolist(), strict=True))


@dataclass(frozen=True)
class RunData:
    """All data of one run in the report.

    Attributes:
        uri: the run folder.
        recipe: the complete recipe.
        record: the content of run.json.
        curves: means over each epoch of every recorded quantity.
        not_finite: number of recorded values that are NaN or infinite; no mean includes them.
        data_wait: of `kdcl_dist.run.data_wait`; empty where it has nothing to say.
    """

    uri: str
    recipe: Recipe
    record: Mapping[str, Any]
    curves: Mapping[Key, Curve] = field(default_factory=dict)
    not_finite: int = 0
    data_wait: str = ""

    @property
    def label(self) -> str:
        """The name of the run folder."""
        shown = displayed(self.uri)
        path = shown.partition("?")[0] if "://" in shown else shown
        return path.rstrip("/").rpartition("/")[2]

    @property
    def state(self) -> str:
        """The state of the run: starting, running, interrupted, failed or finished."""
        return str(self.record.get("state", "unknown"))

    @property
    def cohort(self) -> list[str]:
        """The students in the order of the recipe, the ensemble, then the names of averaged weights."""
        return [*self.recipe.names, ENSEMBLE, *averages_of(self.recipe)]

    @property
    def epochs(self) -> int:
        """Number of epochs that are recorded, whole or in part."""
        return max((int(curve.epochs[-1]) for curve in self.curves.values()), default=0)

    @property
    def last_quarter(self) -> int:
        """The epoch before the last quarter of the analysed epochs; the quarter has at least one epoch."""
        found = {
            int(e) for key, curve in self.curves.items() if key.split == "analysis" for e in curve.epochs
        }
        return sorted(found)[-math.ceil(len(found) / 4)] - 1 if found else 0

    def curve(self, split: str, student: str, name: str) -> Curve | None:
        """One curve; None when the quantity was not recorded."""
        return self.curves.get(Key(split, student, name))

    def mean(self, split: str, student: str, name: str, after: int = 0) -> float:
        """Mean over all rows of the epochs later than `after`; NaN when the quantity was not recorded."""
        curve = self.curve(split, student, name)
        return curve.mean(after) if curve else math.nan

    @property
    def tested(self) -> int:
        """The last epoch that ended with a test, from 1; 0: there was none."""
        tests = (curve for key, curve in self.curves.items() if key.split == "test")
        return max((int(curve.epochs[-1]) for curve in tests), default=0)

    def results(self) -> dict[str, dict[str, float]]:
        """Test loss, top1 and top5 after the last tested epoch, by student and ensemble.

        A student that has left before has those of its last test, if the run has recorded its results. Those
        of the best weights of a finished run have names with `BEST`, and their `epoch`. A value that was not
        finite is missing.
        """
        tests = {key: curve for key, curve in self.curves.items() if key.split == "test"}
        last = self.tested
        found: dict[str, dict[str, float]] = {}
        for key, curve in tests.items():
            values = found.setdefault(key.student, {})
            if curve.epochs[-1] == last:
                values[key.name] = float(curve.means[-1])
        recorded = scores_of(self.record)
        best = {name: values for name, values in recorded.items() if name.endswith(BEST)}
        left = {name: recorded[name] for name, values in found.items() if not values and name in recorded}
        return found | left | best if found else recorded


def load(uri: str) -> RunData:
    """Read a run folder.

    Args:
        uri: path or URI of the run folder.

    Raises:
        RunFolderError: the folder is no run folder or cannot be read, or it has neither metrics nor a
            recorded failure.
    """
    recipe, folder = load_run(uri)
    record, table = read_record(folder), read_metrics(folder)
    if not len(table) and not record.get("cause"):
        state = record.get("state", "unknown")
        raise RunFolderError(
            f"{displayed(uri)!r} has no metrics yet (state: {state}): the first come after an epoch"
        )
    waits = data_wait(recipe, record.get("placement") or {}, last_times(table))
    return RunData(folder.uri, recipe, record, *aggregate(table), waits or "")


def aggregate(table: pa.Table) -> tuple[dict[Key, Curve], int]:
    """Means over each epoch of all finite values of a metrics table, and the number of other values."""
    finite = table.filter(pc.is_finite(table["value"]))
    columns = [*Key._fields, "epoch"]
    means = finite.group_by(columns).aggregate([("value", "mean"), ("value", "count")])
    means = means.sort_by([(name, "ascending") for name in columns])
    rows: dict[Key, list[tuple[int, float, int]]] = {}
    lists = (means[name].to_pylist() for name in (*columns, "value_mean", "value_count"))
    for split, student, name, epoch, mean, count in zip(*lists, strict=True):
        rows.setdefault(Key(split, student, name), []).append((epoch + 1, mean, count))
    curves = {}
    for key, found in rows.items():
        epochs, values, counts = zip(*found, strict=True)
        curves[key] = Curve(np.array(epochs), np.array(values), np.array(counts))
    return curves, len(table) - len(finite)

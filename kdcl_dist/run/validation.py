"""The tests on validation samples so far: each student's best epoch, and how long none was better."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from pydantic import TypeAdapter, ValidationError
from typing_extensions import TypedDict

from kdcl_dist.config.sections import EarlyStopping, Figure
from kdcl_dist.errors import CheckpointError, one_line
from kdcl_dist.run.checkpoint import Manifest, read_manifest, read_part
from kdcl_dist.run.events import Values
from kdcl_dist.run.metrics import EMA
from kdcl_dist.run.storage import Folder

__all__ = ["Best", "Validation", "best_of", "read_validation"]

#: The part of a checkpoint that holds the tests.
PART = "coordinator"


class _Test(TypedDict):
    epoch: int
    step: int
    results: Values
    saved: list[str]


_TESTS = TypeAdapter(list[_Test])


class Best(NamedTuple):
    """A student's best epoch.

    step: training steps before its end. epoch: from 0. value: the figure on validation samples.
    """

    step: int
    epoch: int
    value: float


class Validation:
    """All tests of a run on the validation samples. Pure state.

    Args:
        tests: each as plain values: `epoch` and `step`; `results` by student; `saved`, the students whose
            weights of that time are in the checkpoint of `step`.
    """

    def __init__(self, tests: Sequence[Mapping[str, Any]] = ()) -> None:
        self.tests = [dict(each) for each in tests]

    def add(self, epoch: int, step: int, results: Values, students: Collection[str]) -> None:
        """Add a test of some students, whose weights the checkpoint that follows will have."""
        self.tests.append({"epoch": epoch, "step": step, "results": results, "saved": list(students)})

    def lose(self, names: Collection[str], step: int) -> None:
        """Some students no longer have their weights after `step`, which are in no checkpoint yet."""
        if self.tests and self.tests[-1]["step"] == step:
            last = self.tests[-1]
            last["saved"] = [name for name in last["saved"] if name not in names]

    def best(self, name: str, metric: Figure, until: float = math.inf) -> Best | None:
        """A student's best epoch of those that end at step `until` or before, the earliest among equals."""
        found = None
        for each in self.tests:
            if name in each["saved"] and each["step"] <= until:
                value = figure(each["results"], name, metric)
                if value is not None and (found is None or _is_better(value, found.value, metric)):
                    found = Best(each["step"], each["epoch"], value)
        return found

    def bests(self, names: Sequence[str], metric: Figure | None, until: float = math.inf) -> dict[str, Best]:
        """`best` of each student that has one; none where no metric decides."""
        found = {} if metric is None else {name: self.best(name, metric, until) for name in names}
        return {name: best for name, best in found.items() if best is not None}

    def early_end(self, names: Collection[str], stopping: EarlyStopping | None) -> int | None:
        """The epochs of a run that early stopping ends with the last test; None if it goes on."""
        if stopping is None or self.waited(names, stopping.metric) < stopping.patience:
            return None
        return int(self.tests[-1]["epoch"]) + 1

    def waited(self, names: Collection[str], metric: Figure) -> int:
        """The number of tests since the last in which any student was better than ever before."""
        best: dict[str, float] = {}
        waited = 0
        for each in self.tests:
            waited += 1
            for name in names:
                value = figure(each["results"], name, metric)
                if value is not None and (name not in best or _is_better(value, best[name], metric)):
                    best[name], waited = value, 0
        return waited


def figure(results: Values, name: str, metric: Figure) -> float | None:
    """The figure of a student that decides: of its averaged weights if it has such; None if it diverged."""
    values = results.get(name + EMA) or results.get(name)
    return values[metric] if values is not None and math.isfinite(values["loss"]) else None


def read_validation(run: Folder, manifest: Manifest) -> Validation:
    """The tests that a checkpoint knows of; none of a run without validation samples.

    Raises:
        CheckpointError: the coordinator's part cannot be read.
    """
    try:
        return Validation(_TESTS.validate_python(read_part(run, manifest, PART).get("validation", [])))
    except ValidationError as error:
        raise CheckpointError(
            f"{PART}.pt of {manifest.folder} has no tests on validation samples, but {one_line(error)}"
        ) from None


def best_of(
    run: Folder, manifest: Manifest, name: str, metric: Figure | None
) -> tuple[Best, Manifest] | None:
    """A student's best epoch as a checkpoint knows it, and the checkpoint of that epoch; None without one.

    Args:
        run: the run folder.
        manifest: of the checkpoint that knows.
        name: of the student.
        metric: the recipe's `checkpoint.best`.

    Raises:
        CheckpointError: the checkpoint of that epoch was deleted or damaged.
    """
    best = None if metric is None else read_validation(run, manifest).best(name, metric)
    if best is None:
        return None
    try:
        return best, read_manifest(run, best.step)
    except CheckpointError as error:
        raise CheckpointError(
            f"the checkpoint of the best epoch of {name!r}, {best.epoch + 1}, cannot be used: {error.message}"
        ) from None


def _is_better(value: float, other: float, metric: Figure) -> bool:
    return value < other if metric == "loss" else value > other

"""The metrics that the coordinator records: of every step, every pass and every epoch.

Shapes: S students, B samples, C classes.
"""

from __future__ import annotations

import copy
import math
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from torch import Tensor

from kdcl_dist.config.recipe import Recipe
from kdcl_dist.config.rounds import Kind, Round, RunSchedule
from kdcl_dist.config.student import Worker
from kdcl_dist.coordinator.aligned_logits import Aligned
from kdcl_dist.coordinator.staleness import Staleness, sources_of
from kdcl_dist.coordinator.step_sums import StepSums
from kdcl_dist.errors import StorageError
from kdcl_dist.exchange.message import StepMetrics
from kdcl_dist.run.events import EpochEnded, Values
from kdcl_dist.run.metrics import BEST, EMA, ENSEMBLE, MetricsTable, Scores
from kdcl_dist.run.run import Run
from kdcl_dist.run.step_figures import of_parts
from kdcl_dist.run.validation import Best
from kdcl_dist.tracking.tensorboard import TensorBoard
from kdcl_dist.tracking.tracking import Tracking

__all__ = ["MetricsCollector"]

#: The metrics of a student that are measured on some steps only.
GRADIENTS = ("gradient_cosine", "gradient_ratio")
#: A loss explodes at this multiple of its running mean.
EXPLOSION = 10.0
#: Steps before the running mean of a loss counts.
WARMUP_STEPS = 20


@dataclass
class RunningLoss:
    """An exponential running mean of a student's loss; its half-life is about 70 steps."""

    mean: float = 0.0
    count: int = 0

    def explodes(self, loss: float) -> float | None:
        """Add a step's loss; returns the mean before the step if the loss explodes, else None."""
        mean, warm = self.mean, self.count >= WARMUP_STEPS
        share = max(0.01, 1 / (self.count + 1))
        self.mean, self.count = mean + share * (loss - mean), self.count + 1
        if not warm or loss < EXPLOSION * max(mean, 0.1):
            return None
        self.count = 0  # a new warm-up, so that one explosion gives one warning
        return mean


class MetricsCollector:
    """Collects the metrics of a run until they are written.

    Args:
        run, schedule: the run, and its schedule.
        tracking: the run's other trackers; None: none.

    Attributes:
        results: of the last test, by student and for "ensemble", and by "student/ema" and "ensemble/ema".
        tests: results of the tests that the unfinished epoch has had, by split.
        rates: each student's learning rate in its last step.
    """

    def __init__(self, run: Run, schedule: RunSchedule, tracking: Tracking | None = None) -> None:
        self.recipe, self.schedule, self.tracking = run.recipe, schedule, tracking
        self.table, self.recorded = MetricsTable(run.folder), 0
        start = run.step - run.step % schedule.steps_per_epoch
        self.tensorboard = TensorBoard(run.folder, start) if "tensorboard" in run.recipe.trackers else None
        self.losses = {name: RunningLoss() for name in run.recipe.names}
        self.rates: dict[str, float] = {}
        self.parts: dict[tuple[str, str], list[Mapping[str, float]]] = defaultdict(list)
        self.scores: dict[str, Scores] = {}
        self.results: Values = {}
        self.tests: dict[str, Values] = {}
        self.staleness = Staleness(sources_of(run.recipe))

    def adopt(self, recipe: Recipe, schedule: RunSchedule) -> None:
        """Take over a recipe, whose students that are new are the last ones, and its schedule."""
        self.recipe, self.schedule = recipe, schedule
        self.losses = {name: RunningLoss() for name in recipe.names} | self.losses
        counts, self.staleness = self.staleness.state_dict(), Staleness(sources_of(recipe))
        self.staleness.load_state_dict(counts)

    def running(self) -> Values:
        """Means over the training steps of the current epoch."""
        return self.table.mean("train")

    def latest(self) -> Values:
        """As `running`, but with each student's latest learning rate."""
        return {
            name: values | ({"lr": self.rates[name]} if name in self.rates else {})
            for name, values in self.running().items()
        }

    def step_metrics(self, workers: Sequence[Worker], step_metrics: Sequence[StepMetrics]) -> list[str]:
        """Add the metrics of each worker's last training step; a student's are the mean of its replicas'.

        Returns a line for each student whose loss explodes.
        """
        own: dict[int, list[StepMetrics]] = defaultdict(list)
        for worker, found in zip(workers, step_metrics, strict=True):
            own[worker.student].append(found)
        lines = []
        for student, replicas in own.items():
            name = self.recipe.names[student]
            mean = StepMetrics(*map(fmean, zip(*replicas, strict=True))) if len(replicas) > 1 else replicas[0]
            values = mean._asdict()
            step = int(values.pop("step"))
            if step < 0:
                continue
            epoch = step // self.schedule.steps_per_epoch
            if values.pop("skipped"):
                self.table.add(name, epoch, step, "train", {"skipped": 1.0})
                continue
            gradients = {key: values.pop(key) for key in GRADIENTS}
            if math.isnan(values["paused"]):
                del values["paused"]
            self.rates[name] = values["lr"]
            self.table.add(name, epoch, step, "train", values)
            if (before := self.losses[name].explodes(values["task_loss"])) is not None:
                loss = values["task_loss"]
                lines.append(
                    f"{name}: the loss explodes, {loss:.3g} at step {step} after {before:.3g} before"
                )
            if math.isfinite(sum(gradients.values())):
                self.table.add(name, epoch, step, "analysis", gradients)
        return lines

    def step(self, round: Round, bad: Collection[int], sums: StepSums) -> None:
        """Add a part of a training step: the accuracy of each student, and of the soft target if any.

        Args:
            round: the part.
            bad: students whose logits are not finite.
            sums: over all samples of the part.
        """
        if round.part == 0:
            self.parts.clear()
        for index, (name, scores) in enumerate(zip(self.recipe.names, sums.scores, strict=False)):
            if index in bad:
                self._add_part(name, round, "train", {"skipped": 1.0})
            elif scores.samples:  # else absent
                values = scores.values()
                self._add_part(name, round, "train", {"top1": values["top1"], "top5": values["top5"]})
        target_scores = sums.scores[-1].values() if sums.scores[-1].samples else {}
        self._add_part(ENSEMBLE, round, "train", target_scores | {"ensemble_s": sums.ensemble_s})
        if sums.staleness is not None:
            self.staleness.add_vector(sums.staleness.vector())
        for name, figures in sums.mean_figures().items():
            self._add_part(name, round, "analysis", figures)

    def weights(self, round: Round, weights_S: Tensor, members: Sequence[int]) -> None:
        """Add the new weights of `general`, of the members of the cohort."""
        for index in members:
            weight = float(weights_S[index])
            self._add(self.recipe.names[index], round, "holdout", {"weight": weight})

    def test(self, round: Round, present: Sequence[int], aligned: Aligned, ensemble_BC: Tensor) -> None:
        """Add a batch of a validation or test pass; `ensemble_BC` are the ensemble's log-probabilities.

        The second pass is that of averaged weights; its rows are of the students that have such.
        """
        if round.part == 0:
            self.scores = {}
        averaged = self.schedule.test_batch(round)[0] == 1
        ending = EMA if averaged else ""
        for index in present:
            name = self.recipe.names[index]
            own = aligned.present(index)
            if len(own.ids) and (not averaged or name in self.recipe.averaged):
                scores = self.scores.setdefault(name + ending, Scores())
                scores.add_logits(own.logits[index], own.labels)
        self.scores.setdefault(ENSEMBLE + ending, Scores()).add(ensemble_BC, aligned.labels)

    def end_test(self, round: Round) -> Values:
        """Add the results of the test, on validation or test samples, that a round ends."""
        results = {name: scores.values() for name, scores in self.scores.items()}
        split = "val" if round.kind is Kind.VALIDATE else "test"
        for name, values in results.items():
            self._add(name, round, split, values)
        self.tests[split] = results
        if split == "test":
            self.results = self._with_leavers(results, round.epoch)
        return results

    def _with_leavers(self, results: Values, epoch: int) -> Values:
        """The results of a test, and the last ones of students that have left by an epoch."""
        left = {student.name for student in self.recipe.students if student.has_left(epoch)}
        kept = {name: values for name, values in self.results.items() if name.partition("/")[0] in left}
        names = [name for name in self.recipe.names if name in kept | results]
        return {name: (kept | results)[name] for name in dict.fromkeys([*names, *results, *kept])}

    def end_best(self, round: Round, bests: Mapping[str, Best]) -> None:
        """Add the results of the best weights to those of the newest, each with its epoch from 1 on.

        Args:
            round: the last of the run's test of the best weights.
            bests: of each student that has a best epoch.
        """
        ends = {student.name: student.until_epoch for student in self.recipe.students}
        results = {
            name: values | {"epoch": min(round.epoch, ends.get(name.partition("/")[0]) or round.epoch)}
            for name, values in self.results.items()
        }
        for name, scores in self.scores.items():
            student = name.partition("/")[0]
            if student in bests:
                results[name + BEST] = scores.values() | {"epoch": bests[student].epoch + 1}
            elif student == ENSEMBLE:  # of different epochs
                results[name + BEST] = scores.values()
        self.results = results

    def awaits_end(self, round: Round) -> bool:
        """Whether the table has an epoch that no pass has ended, and that no metrics before `round` lack."""
        epoch = self.table.epoch
        if epoch is None or round.kind not in (Kind.TRAIN, Kind.CHECKPOINT):
            return False
        return round.step >= (epoch + 1) * self.schedule.steps_per_epoch

    def end_epoch(self) -> EpochEnded:
        """End the epoch of the table's rows; `flush` writes it."""
        epoch = self.table.epoch
        assert epoch is not None
        round = Round(Kind.TRAIN, epoch, (epoch + 1) * self.schedule.steps_per_epoch)
        for index, name in enumerate(self.recipe.names):
            self._add(name, round, "window", self.staleness.values(index))
        self.staleness.clear()
        train, tests = self.running(), self.tests
        self.tests = {}
        rows, self.recorded = self.table.end_epoch(epoch), epoch + 1
        if self.tensorboard is not None:
            self.tensorboard.add(rows)
        return EpochEnded(epoch, train, tests.get("test", {}), tests.get("val", {}))

    def flush(self, limit_s: float) -> StorageError | None:
        """Write the ended epochs; returns the error where the storage fails.

        Metrics that are not written are kept for the next call, also in checkpoints.

        Args:
            limit_s: seconds for which a failed write is tried again.
        """
        try:
            self.table.flush(limit_s)
            if self.tracking is not None:
                self.tracking.recorded_until(self.recorded)
            if self.tensorboard is not None:
                self.tensorboard.flush(limit_s)
        except StorageError as error:
            return error
        return None

    def close(self) -> None:
        """Close the open files."""
        if self.tensorboard is not None:
            self.tensorboard.close()

    def state_dict(self) -> dict[str, Any]:
        """The unfinished epoch's rows and counts, and the last results."""
        return self.kept()()

    def kept(self) -> Callable[[], dict[str, Any]]:
        """The state of now, which is made when it is asked for: the rows of a long epoch take time."""
        table = self.table.copied()
        rest = copy.deepcopy({"results": self.results, "staleness": self.staleness.state_dict()})
        return lambda: {"recorder": table.state_dict(), **rest}  # the key of checkpoints since version 0.1.0

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load the state of `state_dict`."""
        self.table.load_state_dict(state["recorder"])
        self.results = state["results"]
        if "staleness" in state:  # older checkpoints have none
            self.staleness.load_state_dict(state["staleness"])

    def _add_part(self, name: str, round: Round, split: str, values: Mapping[str, float]) -> None:
        """Add figures of a part of a training step; with the last part those of the step are recorded."""
        parts = self.parts[name, split]
        parts.append(values)
        if self.schedule.ends_step(round):
            self._add(name, round, split, of_parts(parts))

    def _add(self, name: str, round: Round, split: str, values: Mapping[str, float]) -> None:
        self.table.add(name, round.epoch, round.step, split, values)

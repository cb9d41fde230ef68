"""The values of a run's events as Ray's metrics, which every node of a cluster offers to Prometheus.

A value is the mean over the current epoch's training steps so far, or the last validation or test result. Its
tags are the run (the name of its folder) and the student, or "ensemble". Ray puts `ray_` before the names.
"""

from __future__ import annotations

import logging

from ray.util.metrics import Gauge

from kdcl_dist.run.events import ENSEMBLE, EpochEnded, Event, Started, Stepped, Values

__all__ = ["RayMetrics"]

#: Metrics of the training steps: the name of the recorded value, and a description.
TRAIN = {
    "kdcl_step_seconds": ("step_s", "Seconds of a training step"),
    "kdcl_wait_seconds": ("wait_s", "Seconds of a step that the student waited for a slower one"),
    "kdcl_exchange_seconds": ("exchange_s", "Seconds of a step for the exchange, without the wait"),
    "kdcl_data_seconds": ("data_s", "Seconds of a step that the student waited for its samples"),
    "kdcl_train_loss": ("loss", "Training loss; of the ensemble: the soft target's cross-entropy"),
    "kdcl_distillation_loss": (
        "distillation_loss",
        "The distillation's part of the training loss, unweighted",
    ),
    "kdcl_train_top1": ("top1", "Share of training samples that are classified right, 0 to 1"),
}
#: Metrics of the test pass after an epoch.
TEST = {
    "kdcl_test_top1": ("top1", "Share of test samples that are classified right, 0 to 1"),
    "kdcl_test_loss": ("loss", "Mean cross-entropy of the test samples in nats"),
}
#: Metrics of the pass over validation samples.
VAL = {
    "kdcl_val_top1": ("top1", "Share of validation samples that are classified right, 0 to 1"),
    "kdcl_val_loss": ("loss", "Mean cross-entropy of the validation samples in nats"),
}
#: Metrics of the whole cohort.
PROGRESS = {
    "kdcl_epoch": "Epochs that are done",
    "kdcl_steps": "Training steps that are done",
}


class RayMetrics:
    """Sets gauges from a run's events. An error here is logged once and never raised."""

    def __init__(self, run: str) -> None:
        self.run = run
        self.names: list[str] = []
        self.steps_per_epoch = 0
        self.gauges: dict[str, Gauge] = {}
        self.broken = False

    def handle(self, event: Event) -> None:
        """Set the gauges of an event's values."""
        if self.broken:
            return
        try:
            self._set_all(event)
        except Exception:
            self.broken = True
            logging.getLogger(__name__).warning("the run goes on without its metrics", exc_info=True)

    def _set_all(self, event: Event) -> None:
        if isinstance(event, Started):
            self.names, self.steps_per_epoch = [*event.students, ENSEMBLE], event.steps_per_epoch
            self._set_progress(event.step // event.steps_per_epoch, event.step)
        elif isinstance(event, Stepped):
            self._set_values(TRAIN, event.values)
            self._set_progress((event.step - 1) // self.steps_per_epoch, event.step)
        elif isinstance(event, EpochEnded):
            self._set_values(TRAIN, event.train)
            self._set_values(VAL, event.val)
            self._set_values(TEST, event.test)
            self._set_progress(event.epoch + 1, (event.epoch + 1) * self.steps_per_epoch)

    def _set_values(self, metrics: dict[str, tuple[str, str]], values: Values) -> None:
        for metric, (name, description) in metrics.items():
            for student, found in values.items():
                if name in found:
                    self._set(metric, description, student, found[name])

    def _set_progress(self, epoch: int, step: int) -> None:
        for student in self.names:
            for (metric, description), value in zip(PROGRESS.items(), (epoch, step), strict=True):
                self._set(metric, description, student, value)

    def _set(self, metric: str, description: str, student: str, value: float) -> None:
        if metric not in self.gauges:
            self.gauges[metric] = Gauge(metric, description, tag_keys=("run", "student"))
        self.gauges[metric].set(value, tags={"run": self.run, "student": student})

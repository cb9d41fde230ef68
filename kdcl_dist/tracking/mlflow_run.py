"""The tracker `mlflow`: a run on an MLflow server."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from kdcl_dist.config.tracking import MLflow
from kdcl_dist.tracking.tracker import Point, Status, TrackedRun
from kdcl_dist.utils.extras import load_extra

__all__ = ["MLflowRun"]

#: Unless the user has set others: the client's limits, whose defaults are minutes; and no line with the
#: server's address, which may hold a password.
ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
#: What the server takes in one request.
MOST_METRICS, MOST_PARAMS = 1000, 100
#: Characters of a parameter's value, and of a tag's, that servers of every version take.
PARAM_LENGTH, TAG_LENGTH = 500, 5000
#: The states of a run as the server calls them.
STATES: Mapping[Status, str] = {"finished": "FINISHED", "interrupted": "KILLED", "failed": "FAILED"}


class MLflowRun:
    """Writes points as `split/name/student`.

    Attributes:
        id: of the run on the server.
        steps: of a run that goes on, the last step of each metric that the server has.
    """

    client: Any

    def __init__(self, spec: MLflow) -> None:
        self.spec = spec
        self.id: str | None = None
        self.steps: dict[str, int] = {}

    def start(self, run: TrackedRun) -> str:
        """Begin a run, or go on with the run of an id if the server still has it."""
        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        self.client = load_extra("mlflow").MlflowClient(tracking_uri=self.spec.uri)
        if run.id is None or not self._continues(run.id):
            self._begin(run)
        self._keep_recipe(run.recipe)
        return str(self.id)

    def log(self, points: Sequence[Point]) -> None:
        """Add the points. The server takes equal ones once, so that a call can be repeated."""
        make = load_extra("mlflow.entities").Metric
        metrics = [
            make(f"{p.split}/{p.name}/{p.student}", p.value, int(1000 * p.time), p.step) for p in points
        ]
        new = [metric for metric in metrics if metric.step > self.steps.get(metric.key, -1)]
        for part in _parts(new, MOST_METRICS):
            self.client.log_batch(self.id, metrics=part)

    def finish(self, status: Status) -> None:
        """Set the run's state."""
        self.client.set_terminated(self.id, STATES[status])

    def _continues(self, id: str) -> bool:
        """Whether the run of an id is there and not deleted; then it runs again."""
        exceptions = load_extra("mlflow.exceptions")
        try:
            run = self.client.get_run(id)
        except exceptions.MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return False
        if run.info.lifecycle_stage == "deleted":
            return False
        self.client.update_run(id, status="RUNNING")
        self.id, self.steps = id, {metric.key: metric.step for metric in run.data.to_proto().metrics}
        return True

    def _begin(self, run: TrackedRun) -> None:
        """Make the run, unless a call before that failed has, and give it the parameters."""
        if self.id is None:
            experiment = self.spec.experiment or run.group
            known = self.client.get_experiment_by_name(experiment)
            number = known.experiment_id if known else self.client.create_experiment(experiment)
            self.id = self.client.create_run(number, run_name=run.name).info.run_id
        param = load_extra("mlflow.entities").Param
        for part in _parts(list(run.hparams.items()), MOST_PARAMS):
            params = [param(name, str(value)[:PARAM_LENGTH]) for name, value in part]
            self.client.log_batch(self.id, params=params)

    def _keep_recipe(self, recipe: str) -> None:
        """Keep the recipe as an artifact; as a tag where this host cannot write the server's artifacts."""
        try:
            self.client.log_text(self.id, recipe, "recipe.yaml")
        except Exception:  # of the storage's library
            self.client.set_tag(self.id, "kdcl_dist.recipe", recipe[:TAG_LENGTH])


def _parts(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]

"""All trackers of a run, as the coordinator has them."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec

from kdcl_dist.config.recipe import Recipe
from kdcl_dist.config.tracking import MLflow, OwnTracker, Sampled, Wandb, name_of
from kdcl_dist.config.tracking import Tracker as Spec
from kdcl_dist.errors import RecipeError
from kdcl_dist.run.events import Event
from kdcl_dist.run.metrics import recorded_epochs
from kdcl_dist.run.run import Run
from kdcl_dist.tracking.channel import Channel, has_epochs
from kdcl_dist.tracking.csv_file import CsvFile
from kdcl_dist.tracking.mlflow_run import MLflowRun
from kdcl_dist.tracking.tracker import Status, TrackedRun, Tracker
from kdcl_dist.tracking.weights_and_biases import WandbRun
from kdcl_dist.utils.import_strings import load_object

__all__ = ["FINISH_S", "Tracking", "catch_up", "check_trackers"]

#: Seconds for which the end of a run waits for its trackers, all together.
FINISH_S = 10.0
#: Trackers in packages that may be absent; each has the name of its package and of its extra.
PACKAGES = ("wandb", "mlflow")
#: Trackers whose points wait in a process of their own, which ends with this one.
BUFFERING = ("wandb",)
#: The methods of a tracker.
METHODS = ("start", "log", "finish")


class Tracking:
    """The trackers of a run but for TensorBoard, whose files are written with the metrics.

    Args:
        run: the run.
        emit: takes events from any thread.
    """

    def __init__(self, run: Run, emit: Callable[[Event], None]) -> None:
        self.run, self.emit = run, emit
        self.channels: list[Channel] = []

    def start(self) -> None:
        """Start the trackers that are not started yet; does not wait for them."""
        if not self.channels:
            tracked = TrackedRun.of(self.run)
            self.channels = [
                Channel(
                    name_of(spec),
                    partial(_make, spec),
                    tracked,
                    _every_steps(spec),
                    self.emit,
                    name_of(spec) in BUFFERING,
                )
                for spec in self.run.recipe.tracking
                if spec != "tensorboard"
            ]

    def recorded_until(self, epochs: int) -> None:
        """Say that so many epochs are recorded; does not wait."""
        for channel in self.channels:
            channel.recorded_until(epochs)

    def close(self, status: Status | None) -> None:
        """End the trackers within `FINISH_S`; None: another process goes on with the run."""
        for channel in self.channels:
            channel.close(status)
        deadline = time.monotonic() + FINISH_S
        for channel in self.channels:
            channel.join(max(0.0, deadline - time.monotonic()))


def catch_up(run: Run, emit: Callable[[Event], None]) -> None:
    """Give the trackers of a finished run the epochs that they lack, within `FINISH_S`.

    Args:
        run: the run, which nobody trains.
        emit: takes events from any thread.
    """
    epochs = 1 + max(recorded_epochs(run.folder), default=-1)
    others = [name for name in run.recipe.trackers if name != "tensorboard"]
    if any(has_epochs(run.folder, name) < epochs for name in others):
        tracking = Tracking(run, emit)
        tracking.start()
        tracking.recorded_until(epochs)
        tracking.close("finished")


def check_trackers(recipe: Recipe) -> None:
    """See that the packages and the user's own trackers are there.

    Raises:
        RecipeError: one is not.
    """
    for position, spec in enumerate(recipe.tracking):
        path, name = f"tracking.{position}", name_of(spec)
        if name in PACKAGES and not _is_installed(name):
            raise RecipeError(f"{path}: {name} is not installed: pip install 'kdcl_dist[{name}]'")
        if ":" in name:
            _check_own(path, name)


def _make(spec: Spec) -> Tracker:
    """The tracker of an item of a recipe; of the user's own, whatever its function gives."""
    match spec:
        case "csv":
            return CsvFile()
        case "wandb" | Wandb():
            return WandbRun(Wandb() if isinstance(spec, str) else spec)
        case "mlflow" | MLflow():
            return MLflowRun(MLflow() if isinstance(spec, str) else spec)
        case OwnTracker():
            own: Tracker = spec.load()()
        case _:
            own = OwnTracker(name=spec).load()()
    return own


def _check_own(path: str, name: str) -> None:
    try:
        found = load_object(name)
    except ImportError as error:
        raise RecipeError(f"{path}: {error}") from None
    if not callable(found):
        raise RecipeError(f"{path}: {name!r} is a {type(found).__name__}, no class or function of a tracker")
    lacking = [method for method in METHODS if isinstance(found, type) and not hasattr(found, method)]
    if lacking:
        raise RecipeError(f"{path}: {name!r} is no tracker: it lacks the method {lacking[0]!r}")


def _is_installed(package: str) -> bool:
    """Whether a package is there; a folder of its name, such as wandb's own, is none."""
    found = find_spec(package)
    return found is not None and found.origin is not None


def _every_steps(spec: Spec) -> int:
    return spec.every_steps if isinstance(spec, Sampled) else 1

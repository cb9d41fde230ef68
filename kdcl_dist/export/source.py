"""The source of an export: one student of a run, or the ensemble of all, at one checkpoint.

Shapes: B samples.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, reduce
from typing import Any, Literal

import numpy as np
import pyarrow.compute as pc
import torch
from torch import nn

from kdcl_dist import models
from kdcl_dist.config.differences import are_of_one_arm
from kdcl_dist.config.model import is_url
from kdcl_dist.config.recipe import Recipe
from kdcl_dist.config.stored_imports import check_recipe_imports
from kdcl_dist.config.student import Student
from kdcl_dist.data.layout import Layout
from kdcl_dist.data.loader import batches
from kdcl_dist.data.sample_views import AnyViews, SampleViews
from kdcl_dist.data.samples import Inputs
from kdcl_dist.data.sampling import Ids
from kdcl_dist.data.training_data import TrainingData
from kdcl_dist.distillation.methods import Context
from kdcl_dist.errors import CheckpointError, ExportError, ModelError, RunFolderError, StorageError, one_line
from kdcl_dist.evaluation import open_training_data
from kdcl_dist.export.ensemble import build_ensemble
from kdcl_dist.export.example import Example
from kdcl_dist.membership.monitor import COORDINATOR
from kdcl_dist.models.ensemble import Ensemble
from kdcl_dist.models.lazy import initialise
from kdcl_dist.run.checkpoint import Manifest, latest, read_part, steps
from kdcl_dist.run.epochs import Epoch, checkpoint_of_best, checkpoint_of_epoch, cohort_of
from kdcl_dist.run.metrics import BEST, EMA, ENSEMBLE, read_metrics
from kdcl_dist.run.record import read_record, scores_of
from kdcl_dist.run.run import load_run
from kdcl_dist.run.storage import Folder

__all__ = ["Source", "label_of", "misfit"]

#: Test samples on which an export is compared with the student; at least two, since the batch size varies.
PROBES = 8
#: Test samples that are no images, of which the largest are taken, at most.
SEEN = 4096

Results = Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class Source:
    """A trained student or ensemble, with its run.

    Attributes:
        folder: the run folder.
        recipe: the run's recipe.
        student: the student in the recipe; of the ensemble, one that stands for it.
        step: training steps that the student has done.
        network: on the CPU, in evaluation mode.
        training_data: the run's data.
        record: the content of run.json.
        results: test results after `step` by student and "ensemble"; empty if `step` is within an epoch, or
            an ensemble has students of several steps.
        members: the students of the ensemble; none of a single student.
        steps: training steps that each member has done.
        ema: whether the network has the averaged weights, of each student that has them.
    """

    folder: Folder
    recipe: Recipe
    student: Student
    step: int
    network: nn.Module
    training_data: TrainingData
    record: Mapping[str, Any]
    results: Results
    members: Sequence[Student] = ()
    steps: Mapping[str, int] = field(default_factory=dict)
    ema: bool = False

    @classmethod
    def load(
        cls,
        uri: str,
        name: str,
        *,
        epoch: Epoch | None = None,
        last: bool = False,
        ema: bool = False,
        warn: Callable[[str], None],
        allow_imports: Collection[str] = (),
    ) -> Source:
        """Load a student or the ensemble.

        Args:
            uri: the run folder's path or URI.
            name: the student's name, or "ensemble".
            epoch: the epoch, from 1, whose checkpoint is loaded, or "best" for each student's own. None: the
                latest checkpoint, as in `kdcl evaluate`.
            last: load the checkpoint of the recipe's last epoch; an error if there is none.
            ema: load the averaged weights in place of the last step's.
            warn: takes a text for each damaged checkpoint that is skipped.
            allow_imports: modules outside this package that the run's recipe may import.

        Raises:
            ImportRefused: the recipe names a module that is not allowed.
            RunFolderError: the folder is no run folder, or has no such student, average or checkpoint.
            UserError: the data or the network differs from the run's, or cannot be loaded.
        """
        recipe, folder = load_run(uri)
        student, members = _student(folder, recipe, name, ema=ema)
        chosen = {each.name: each for each in members or [student]}
        check_recipe_imports(recipe, str(folder), allow_imports, students=chosen)
        training_data = open_training_data(recipe, folder)
        newest, parts = _checkpoints(folder, training_data, chosen, "last" if last else epoch, warn)
        members = [each for each in members if each.name in parts]
        networks = {n: _load(folder, part, chosen[n], training_data, ema=ema) for n, part in parts.items()}
        network = _ensemble(folder, newest, recipe, networks) if members else networks[name]
        # The part of an absent student is older than its checkpoint.
        steps = {each: part.step_of(each) for each, part in parts.items()}
        record = read_record(folder)
        best = _best_results(record, name + (EMA if ema else "")) if epoch == "best" else {}
        results = best or _results(folder, steps.values(), training_data.schedule.steps_per_epoch)
        origin = (folder, recipe, student, max(steps.values()), network, training_data, record, results)
        return cls(*origin, members, steps if members else {}, ema)

    def build(self) -> nn.Module:
        """The plain network with other weights."""
        classes, channels = len(self.training_data.train.classes), self.training_data.channels
        if self.members:
            return build_ensemble({each.name: each.model for each in self.members}, classes, channels)
        return models.build(self.student.model, classes, channels)

    @property
    def title(self) -> str:
        """The name that the network's test results have."""
        return self.student.name + (EMA if self.ema else "")

    @property
    def when(self) -> str:
        """The time of the checkpoint in words, for each student of an ensemble where they differ."""
        if len({*self.steps.values()}) > 1:
            return ", ".join(f"{name}: {self._time(step)}" for name, step in self.steps.items())
        return self._time(self.step)

    def _time(self, step: int) -> str:
        epochs, rest = divmod(step, self.training_data.schedule.steps_per_epoch)
        text = f"epoch {epochs} of {self.recipe.epochs}"
        return f"{text} and {rest} steps" if rest else text

    @cached_property
    def example(self) -> Example:
        """A few test samples, preprocessed as in a test."""
        return _probes(self.training_data)

    def seeds(self) -> dict[int, Results]:
        """Final test results of all finished runs of this arm of a `kdcl compare` table, by seed.

        The result is empty if the run belongs to no table. It leaves out runs that cannot be read.
        """
        if (named := re.fullmatch(r"(.+)-seed\d+", label_of(self.folder))) is None:
            return {}
        path, mark, query = self.folder.uri.partition("?")
        parent = Folder(path.rpartition("/")[0] + mark + query, self.folder.limit_s)
        found: dict[int, Results] = {}
        for name in parent.names():
            if not re.fullmatch(re.escape(named[1]) + r"-seed\d+", name):
                continue
            try:
                recipe, folder = load_run((parent / name).uri)
                record = read_record(folder)
            except (RunFolderError, StorageError):
                continue
            alike = are_of_one_arm(self.recipe, recipe)
            if alike and record.get("state") == "finished" and (scores := scores_of(record)):
                found[recipe.seed] = scores
        return found


def _probes(training_data: TrainingData) -> Example:
    views, count = training_data.test_views(training_data.test), len(training_data.test)
    if not isinstance(views, SampleViews):
        return Example(_batch(views, np.arange(PROBES) % count))
    seen = np.unique(np.linspace(0, count - 1, SEEN).astype(int)).tolist()
    layouts = [Layout.of(views[0, index]) for index in seen]
    longest = sorted(zip(map(_size, layouts), seen, strict=True), reverse=True)[:PROBES]
    ids_B = np.resize([index for _, index in longest], PROBES)
    try:
        return Example(_batch(views, ids_B), reduce(Layout.joined, layouts))
    except ValueError as error:
        raise ExportError(f"data.test_view gives samples of several layouts: {error}") from error


def _batch(views: AnyViews, ids_B: Ids) -> Inputs:
    return next(batches(views, [(0, ids_B)])).inputs


def _size(layout: Layout) -> int:
    """The numbers in a sample."""
    return sum(math.prod(side or 0 for side in column.shape) for column in layout.columns)


def label_of(folder: Folder) -> str:
    """The run's name."""
    return str(folder).rstrip("/").rpartition("/")[2]


def misfit(error: BaseException) -> str:
    """The reason in an error of `load_state_dict`; its first line only names the class."""
    return " ".join(str(error).splitlines()[1:2]).strip() or one_line(error)


def _student(folder: Folder, recipe: Recipe, name: str, *, ema: bool) -> tuple[Student, list[Student]]:
    """The student, and none; or one that stands for the ensemble, and its members."""
    stored = [recipe.names[index] for index in recipe.stored]
    if name in stored:
        raise RunFolderError(f"--student {name!r}: it is a file of stored logits, and has no network")
    found = [each for each in recipe.networks.values() if name in (each.name, ENSEMBLE)]
    if not found:
        raise RunFolderError(
            f"--student {name!r}: {str(folder)!r} has no such student (it has {', '.join(recipe.names)}, and "
            f"{ENSEMBLE} for all of them)"
        )
    if served := [each for each in found if is_url(each.model)]:
        raise RunFolderError(
            f"--student {name!r}: the network of {served[0].name!r} is computed by {served[0].model!r}, and "
            "is not in the run folder"
        )
    if ema and all(each.ema is None for each in found):
        raise RunFolderError(f"--ema: student {name!r} has no averaged weights (its ema is null)")
    if name != ENSEMBLE:
        return found[0], []
    others = (each.precision for each in found if each.precision != "fp32")
    return Student.model_construct(name=name, model=name, precision=next(others, "fp32")), found


def _latest(folder: Folder, warn: Callable[[str], None]) -> Manifest:
    if (manifest := latest(folder, warn)) is None:
        raise RunFolderError(
            f"{str(folder)!r} has no complete checkpoint that can be exported (checkpoints begun: "
            f"{len(steps(folder))})"
        )
    return manifest


def _checkpoints(
    folder: Folder,
    training_data: TrainingData,
    names: Collection[str],
    epoch: Epoch | Literal["last"] | None,
    warn: Callable[[str], None],
) -> tuple[Manifest, dict[str, Manifest]]:
    """The checkpoint with the ensemble's state of an epoch, and by student that with its weights.

    Of several students, which are the ensemble's, those count that take part in the epoch.
    """
    recipe, per_epoch = training_data.recipe, training_data.schedule.steps_per_epoch
    if epoch == "last":
        found = checkpoint_of_epoch(folder, per_epoch, recipe.epochs, "--last")
    elif isinstance(epoch, int):
        found = checkpoint_of_epoch(folder, per_epoch, epoch, f"--epoch {epoch}")
    else:
        found = _latest(folder, warn)
    if len(names) > 1:
        members = cohort_of(recipe, found, per_epoch)
        names = [recipe.names[index] for index in members if index in recipe.networks]
    if epoch == "best":
        return found, {name: checkpoint_of_best(folder, recipe, found, name) for name in names}
    return found, dict.fromkeys(names, found)


def _load(
    folder: Folder, manifest: Manifest, student: Student, training_data: TrainingData, *, ema: bool
) -> nn.Module:
    network = models.build(student.model, len(training_data.train.classes), training_data.channels)
    try:
        part = read_part(folder, manifest, student.name)
        averaged = ema and student.ema is not None
        network.load_state_dict((part["ema"] if averaged else part)["model"])
    except (RuntimeError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(
            f"student {student.name!r} of {str(folder)!r} does not fit model {student.model!r} as it is "
            f"built here: {misfit(error)}; use the versions that recipe.yaml begins with"
        ) from None
    except CheckpointError as error:
        raise RunFolderError(error.message) from None
    initialise(network, str(student.model), _probes(training_data).inputs)
    return network.eval()


def _ensemble(
    folder: Folder, manifest: Manifest, recipe: Recipe, networks: Mapping[str, nn.Module]
) -> Ensemble:
    """The ensemble as a test forms it: with the weights of `general`, or equal ones."""
    try:
        state = read_part(folder, manifest, COORDINATOR)["coordinator"]
    except CheckpointError as error:
        raise RunFolderError(error.message) from None
    weights_S = state["weights"]
    there_S = torch.tensor([name in networks for name in recipe.names[: len(weights_S)]])
    weights_S = Context(weights_S=weights_S).of(there_S).weights_S
    assert weights_S is not None
    return Ensemble(networks, weights_S.tolist()).eval()


def _results(folder: Folder, steps: Collection[int], per_epoch: int) -> Results:
    """The recorded test results after these steps; empty if there are none, or not all end one epoch."""
    epochs, rest = divmod(max(steps), per_epoch)
    if rest or len({*steps}) > 1:
        return {}
    try:
        table = read_metrics(folder)
    except RunFolderError:  # missing test results do not prevent an export
        return {}
    rows = table.filter((pc.field("split") == "test") & (pc.field("epoch") == epochs - 1)).to_pylist()
    found: dict[str, dict[str, float]] = {}
    for row in rows:
        found.setdefault(row["student"], {})[row["name"]] = row["value"]
    return found


def _best_results(record: Mapping[str, Any], title: str) -> Results:
    """The final test results of the best weights; empty if there are none, or the run is not finished."""
    values = scores_of(record).get(title + BEST)
    return {title: values} if values is not None and record.get("state") == "finished" else {}

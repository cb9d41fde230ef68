"""Tests of a finished run in one process: of each student alone, and of all together.

Shapes: S students, B batch, C classes (of logits) or channels (of images), H W image.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kdcl_dist.config.recipe import Recipe
from kdcl_dist.config.stored_imports import check_recipe_imports
from kdcl_dist.coordinator.aggregator import Aggregator
from kdcl_dist.coordinator.aligned_logits import Aligned
from kdcl_dist.data.dataset import ImageDataset
from kdcl_dist.data.loader import Batch
from kdcl_dist.data.training_data import TrainingData
from kdcl_dist.errors import CheckpointError, RunFolderError, UserError, one_line
from kdcl_dist.membership.monitor import COORDINATOR
from kdcl_dist.run.checkpoint import Manifest, latest, read_part
from kdcl_dist.run.class_scores import ClassScores
from kdcl_dist.run.epochs import Epoch, checkpoint_of_best, checkpoint_of_epoch, cohort_of
from kdcl_dist.run.metrics import EMA, ENSEMBLE, Scores, averages_of
from kdcl_dist.run.record import read_record
from kdcl_dist.run.run import load_run
from kdcl_dist.run.storage import Folder
from kdcl_dist.run.uris import displayed
from kdcl_dist.student.student import Student
from kdcl_dist.utils.data_specs import moved
from kdcl_dist.utils.devices import choose_device, needs_memory
from kdcl_dist.utils.seeding import Purpose, derive

__all__ = [
    "Evaluation",
    "Noise",
    "Trained",
    "evaluate",
    "evaluate_under_noise",
    "open_training_data",
    "with_data_here",
]


@dataclass(frozen=True)
class Evaluation:
    """The test results of a checkpoint.

    Attributes:
        step: training steps before the checkpoint.
        samples: number of test samples.
        results: loss (nats), top1 and top5 (shares), by student and for "ensemble"; of averaged weights by
            "student/ema" and "ensemble/ema".
        classes: names of the classes, in the order of their labels.
        details: the results class by class, by student and for "ensemble".
        epochs: by student the epoch, from 1, of its weights, where these are of its best epoch.
    """

    step: int
    samples: int
    results: dict[str, dict[str, float]]
    classes: tuple[str, ...]
    details: dict[str, ClassScores]
    epochs: dict[str, int] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """All of it as plain data."""
        results = {
            name: values | self.details[name].as_dict(self.classes) for name, values in self.results.items()
        }
        fields = {"step": self.step, "samples": self.samples, "classes": list(self.classes)}
        return fields | ({"epochs": self.epochs} if self.epochs else {}) | {"results": results}


@dataclass(frozen=True)
class Trained:
    """The students of a run's checkpoint, and the data of its recipe.

    Attributes:
        step: training steps before the checkpoint.
        training_data: the data.
        aggregator: forms the ensemble of the students that take part at that time.
        students: by index those that have weights.
        steps: by index the training steps before the checkpoint from which a student has its weights.
    """

    step: int
    training_data: TrainingData
    aggregator: Aggregator
    students: dict[int, Student]
    steps: dict[int, int]

    @classmethod
    def load(
        cls,
        uri: str,
        *,
        device: str = "auto",
        warn: Callable[[str], None],
        allow_imports: Collection[str] = (),
        data: str | None = None,
        epoch: Epoch | None = None,
    ) -> Trained:
        """Load a run.

        Args:
            uri: the run folder's path or URI.
            device: "cpu", "cuda", or "auto" for a GPU if there is one.
            warn: called with a line for each damaged checkpoint that is skipped.
            allow_imports: modules outside this package that the run's recipe may import.
            data: test set in place of the recipe's, in the form of the field `data.test`.
            epoch: the epoch, from 1, whose checkpoint is loaded, or "best" for each student's own. None: the
                latest checkpoint.

        Raises:
            DataError: `data` cannot be read, or has other classes or channels.
            RunFolderError: `uri` is no run folder or has no such checkpoint.
            UserError: there is no such device.
            ImportRefused: the recipe names a module that is not allowed.
        """
        recipe, folder = load_run(uri)
        check_recipe_imports(recipe, str(folder), allow_imports)
        chosen = choose_device(device)
        if (manifest := latest(folder, warn)) is None:
            raise RunFolderError(f"{displayed(uri)!r} has no complete checkpoint to evaluate")
        training_data = open_training_data(recipe, folder, data)
        manifest, parts = _checkpoints(folder, training_data, manifest, epoch)
        try:
            with needs_memory():
                aggregator, students = _restored(recipe, folder, manifest, parts, training_data, chosen)
        except (CheckpointError, RuntimeError, KeyError, TypeError, ValueError, AttributeError) as error:
            reason = error.message if isinstance(error, CheckpointError) else one_line(error)
            raise RunFolderError(
                f"{displayed(uri)!r} cannot be evaluated: {manifest.folder} does not fit the recipe: {reason}"
            ) from error
        steps = {index: part.step for index, part in parts.items()}
        return cls(manifest.step, training_data, aggregator, students, steps)

    @needs_memory()
    def test(
        self, noise: Noise | None = None, details: Mapping[str, ClassScores] | None = None
    ) -> dict[str, dict[str, float]]:
        """Loss, top1 and top5 over all test samples, by `names`.

        Args:
            noise: on the pixels of images. None: none.
            details: collects the results class by class, by `names`. None: not needed.

        Raises:
            UserError: the GPU has too little free memory.
        """
        scores = {name: Scores() for name in self.names}
        for number, batch in enumerate(self.training_data.test_batches()):
            if noise is not None:
                assert isinstance(batch.inputs, Tensor)
                batch = batch._replace(inputs=noise.add(batch.inputs, number))
            answers = self._answers(batch)
            if self.training_data.recipe.averaged:
                averaged = self._answers(batch, averaged=True)
                answers |= {name + EMA: log_p_BC for name, log_p_BC in averaged.items()}
            for name, score in scores.items():
                score.add(answers[name], batch.labels)
                if details is not None:
                    details[name].add(answers[name], batch.labels)
        return {name: score.values() for name, score in scores.items()}

    @property
    def names(self) -> list[str]:
        """The names in test results: students, "ensemble", and those of averaged weights."""
        names = self.student_names
        averages = averages_of(self.training_data.recipe)
        return [*names, ENSEMBLE, *(each for each in averages if each[: -len(EMA)] in (*names, ENSEMBLE))]

    @property
    def student_names(self) -> list[str]:
        """The names of the students that have weights."""
        return [self.aggregator.names[index] for index in self.students]

    def _answers(self, batch: Batch, *, averaged: bool = False) -> dict[str, Tensor]:
        """The log-probabilities (B, C) of each student and of the ensemble."""
        found = [student.predict(batch.inputs, averaged=averaged).cpu() for student in self.students.values()]
        logits_SBC = torch.stack(found)
        answers = dict(zip(self.student_names, F.log_softmax(logits_SBC, dim=2), strict=True))
        answers[ENSEMBLE] = self.aggregator.predict(self._aligned(batch, logits_SBC))
        return answers

    def _aligned(self, batch: Batch, logits_SBC: Tensor) -> Aligned:
        """The logits of the students that take part, in the order of the cohort."""
        members, count = self.aggregator.members, len(self.aggregator.names)
        if len(members) == count:
            return Aligned(batch.ids, batch.labels, logits_SBC)
        whole_SBC = torch.zeros(count, *logits_SBC.shape[1:])
        whole_SBC[list(self.students)] = logits_SBC
        age_SB = torch.zeros(whole_SBC.shape[:2], dtype=torch.int64)
        return Aligned(batch.ids, batch.labels, whole_SBC, age_SB).of(members)


def _checkpoints(
    folder: Folder, training_data: TrainingData, newest: Manifest, epoch: Epoch | None
) -> tuple[Manifest, dict[int, Manifest]]:
    """The checkpoint with the ensemble's state of an epoch, and by index that with each student's weights.

    A student that had not joined by then has none.
    """
    recipe, per_epoch = training_data.recipe, training_data.schedule.steps_per_epoch
    if isinstance(epoch, int):
        newest = checkpoint_of_epoch(folder, per_epoch, epoch, f"--epoch {epoch}")
    done = max(0, newest.step - 1) // per_epoch
    joined = {index: each.name for index, each in recipe.networks.items() if each.from_epoch - 1 <= done}
    if missing := [name for name in joined.values() if name not in newest.parts]:
        raise RunFolderError(
            f"{displayed(folder.uri)!r} cannot be evaluated: {newest.folder} has no student "
            f"{', '.join(map(repr, missing))}"
        )
    if epoch == "best":
        return newest, {i: checkpoint_of_best(folder, recipe, newest, name) for i, name in joined.items()}
    return newest, dict.fromkeys(joined, newest)


def _restored(
    recipe: Recipe,
    folder: Folder,
    manifest: Manifest,
    parts: Mapping[int, Manifest],
    training_data: TrainingData,
    device: torch.device,
) -> tuple[Aggregator, dict[int, Student]]:
    """The aggregator with its state of a checkpoint, and each student with its state of its own."""
    aggregator = Aggregator(recipe)
    aggregator.load_state_dict(read_part(folder, manifest, COORDINATOR)["coordinator"])
    members = cohort_of(recipe, manifest, training_data.schedule.steps_per_epoch)
    aggregator.members = [index for index in members if index in recipe.networks]
    students = {}
    for index, part in parts.items():
        students[index] = Student.of(training_data, index, device=device, resumed=True, trains=False)
        students[index].load_weights(read_part(folder, part, recipe.names[index]))
    return aggregator, students


def open_training_data(recipe: Recipe, folder: Folder, test: str | None = None) -> TrainingData:
    """Open the data of a run.

    A relative path that does not exist in the working directory is looked up in that of the run.

    Args:
        recipe, folder: of the run.
        test: test set in place of the recipe's.

    Raises:
        DataError: as `TrainingData.open`.
    """
    return TrainingData.open(with_data_here(recipe, folder, {} if test is None else {"test": test}))


def with_data_here(recipe: Recipe, folder: Folder, others: Mapping[str, str] | None = None) -> Recipe:
    """The recipe of a run with its data sets as this process finds them; see `open_training_data`.

    Args:
        recipe, folder: of the run.
        others: sets in place of the recipe's, by their fields.
    """
    root = read_record(folder).get("root", ".")
    found = {name: moved(spec, root) for name, spec in recipe.data.sets.items()} | dict(others or {})
    return recipe.model_copy(update={"data": recipe.data.model_copy(update=found)})


@dataclass(frozen=True)
class Noise:
    """Gaussian noise on pixels (KDCL figure 4): N(0, deviation^2) for pixels in [0, 1], without clipping.

    The draws depend on seed, repeat and batch only, so that all deviations scale the same noise.

    Attributes:
        deviation: standard deviation of the noise.
        repeat: number of the repetition, from 0.
        seed: seed of the run.
        std: standard deviation of the training set by channel, by which normalised images are divided.
    """

    deviation: float
    repeat: int
    seed: int
    std: tuple[float, ...]

    def add(self, images_BCHW: Tensor, batch: int) -> Tensor:
        """Normalised images with noise, (B, C, H, W); `batch` is the number of the test batch."""
        generator = torch.Generator().manual_seed(derive(self.seed, Purpose.TEST_NOISE, self.repeat, batch))
        noise_BCHW = torch.randn(images_BCHW.shape, generator=generator)
        return images_BCHW + self.deviation * noise_BCHW / torch.tensor(self.std)[:, None, None]


def evaluate(
    uri: str,
    *,
    device: str = "auto",
    warn: Callable[[str], None],
    allow_imports: Collection[str] = (),
    data: str | None = None,
    epoch: Epoch | None = None,
) -> Evaluation:
    """Test a run's checkpoint; arguments and errors as `Trained.load`."""
    trained = Trained.load(uri, device=device, warn=warn, allow_imports=allow_imports, data=data, epoch=epoch)
    test, per_epoch = trained.training_data.test, trained.training_data.schedule.steps_per_epoch
    epochs = {trained.aggregator.names[i]: step // per_epoch for i, step in trained.steps.items()}
    classes = tuple(test.classes)
    details = {name: ClassScores(len(classes)) for name in trained.names}
    results, own = trained.test(details=details), epochs if epoch == "best" else {}
    return Evaluation(trained.step, len(test), results, classes, details, own)


def evaluate_under_noise(
    uri: str,
    deviations: Sequence[float],
    repeats: int,
    *,
    device: str = "auto",
    warn: Callable[[str], None],
    allow_imports: Collection[str] = (),
) -> Iterator[tuple[float, int, dict[str, dict[str, float]]]]:
    """Test a run under pixel noise of several deviations, with `repeats` draws of each.

    Yields (deviation, repeat, results as in `Evaluation`). Other arguments and errors as `Trained.load`.

    Raises:
        UserError: the samples are no images.
    """
    trained = Trained.load(uri, device=device, warn=warn, allow_imports=allow_imports)
    train = trained.training_data.train
    if not isinstance(train, ImageDataset):
        raise UserError(
            f"--noise is on pixels, and the samples of {trained.training_data.recipe.data.test} are no images"
        )
    std = tuple(train.std)
    seed = trained.training_data.recipe.seed
    for deviation in deviations:
        for repeat in range(repeats):
            yield deviation, repeat, trained.test(Noise(deviation, repeat, seed, std))

"""A recipe applied to its data: split, schedule of rounds, and each student's batches.

Shapes: B batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from torch import Tensor

from kdcl_dist.config.recipe import Recipe
from kdcl_dist.config.rounds import Kind, Round, RunSchedule
from kdcl_dist.data.class_weights import class_weights
from kdcl_dist.data.dataset import Dataset, ImageDataset, channels_of, fingerprint
from kdcl_dist.data.first_samples import check_samples
from kdcl_dist.data.fit import check_fit
from kdcl_dist.data.loader import Batch, BatchSpec, mixed_batches
from kdcl_dist.data.mixing import mix_of_round
from kdcl_dist.data.own_samples import own_parts, own_samples
from kdcl_dist.data.sample_views import AnyViews, SampleViews, collate_of, transforms_of
from kdcl_dist.data.sampling import (
    Ids,
    batches_of,
    epoch_steps,
    replica_share,
    split_samples,
    student_seed,
)
from kdcl_dist.data.sources.opened import Tell
from kdcl_dist.data.sources.opening import DataSets
from kdcl_dist.data.sources.table_columns import Columns
from kdcl_dist.data.statistics import Scale, scale_of
from kdcl_dist.data.views import Views
from kdcl_dist.errors import DataError, RecipeError, of_user_code

__all__ = ["TrainingData", "naming_field"]


@dataclass(frozen=True)
class TrainingData:
    """A recipe together with its open data sets.

    Attributes:
        columns: the use of the training set's columns, where it is a table.

    Raises:
        DataError: a data set cannot be opened, both do not fit together, or are too small.
        RecipeError: a transform is unknown.
    """

    recipe: Recipe
    train: Dataset
    test: Dataset
    val: Dataset | None = None
    dry_steps: int | None = None
    columns: Columns | None = None

    @classmethod
    def open(cls, recipe: Recipe, tell: Tell = lambda text: None) -> TrainingData:
        """Open all data sets; check them against the recipe and each other.

        `tell` takes a line for each data set in which something was found.
        """
        found: dict[str, Dataset] = {}
        sets = DataSets(recipe.data, tell)
        for name in recipe.data.sets:
            with naming_field(f"data.{name}"):
                found[name] = sets.open(name)
        check_fit(recipe, found)
        training_data = cls(recipe, found["train"], found["test"], found.get("val"), columns=sets.columns)
        training_data.check()
        return training_data

    def of(self, recipe: Recipe) -> TrainingData:
        """The same data for a recipe with another cohort; what is known of all samples is kept."""
        other = replace(self, recipe=recipe)
        vars(other).update({name: known for name, known in vars(self).items() if name in ("_split", "scale")})
        return other

    def check(self) -> None:
        """Build the schedule and every student's transforms: what can fail shall fail before training."""
        if len(np.unique(self.train.labels)) < 2:
            raise DataError(
                "data.train has samples of a single class, which every network answers without learning: "
                "at least two are needed"
            )
        _ = self.own, self.schedule
        with naming_field("data.test_view"):
            transforms_of(self.train, self.recipe.data.test_items)
        collate_of(self.recipe.data.collate)
        for index, student in self.recipe.networks.items():
            with naming_field(self.augment_field(index)):
                transforms_of(self.train, self.recipe.augment_of(student))
            self.class_weights(index)

    @property
    def channels(self) -> int | None:
        """Channels of the images; None: the samples are no images."""
        return channels_of(self.train)

    def augment_field(self, index: int) -> str:
        """The field of the recipe that has a student's transforms."""
        student = self.recipe.students[index]
        return "data.augment" if student.augment is None else f"students.{student.name}.augment"

    @cached_property
    def _split(self) -> tuple[Ids, Ids, Ids]:
        """Training ids, held-out ids, and those of `data.val_fraction`."""
        data, labels_N = self.recipe.data, np.asarray(self.train.labels, np.int64)
        shares = data.holdout_per_class, data.val_fraction
        return split_samples(labels_N, *shares, self.recipe.seed, data.train_per_class)

    @property
    def split(self) -> tuple[Ids, Ids]:
        """Training ids, and held-out ids."""
        return self._split[:2]

    @property
    def validation(self) -> tuple[Dataset, Ids]:
        """The data set that has the validation samples, and their ids in it; none without such samples."""
        return (self.train, self._split[2]) if self.val is None else (self.val, np.arange(len(self.val)))

    @cached_property
    def own(self) -> list[Ids]:
        """The ids of the samples from which each student learns; errors as `own_samples`."""
        return own_samples(self.recipe, self.train, self.split[0])

    def seen(self, index: int) -> Ids:
        """The ids of the training samples that a student sees."""
        return self.own[index] if self.recipe.students[index].sees_part else self.split[0]

    def class_weights(self, index: int) -> Tensor | None:
        """The weights of the classes in a student's loss, float32 (C,); None: all are 1.

        Raises:
            RecipeError: as `kdcl_dist.data.class_weights.class_weights`.
        """
        student = self.recipe.students[index]
        if student.class_weights is None:
            return None
        labels_N = np.asarray(self.train.labels, np.int64)[self.own[index]]
        field = f"students.{student.name}.class_weights"
        return class_weights(student.class_weights, self.train.classes, labels_N, field)

    @cached_property
    def schedule(self) -> RunSchedule:
        """The schedule of all rounds of the run, or of its first `dry_steps` steps."""
        recipe, holdout_ids = self.recipe, self.split[1]
        most = max(map(self.seen, recipe.networks), key=len)
        has_weights = recipe.distillation.needs_holdout
        whole = RunSchedule(
            epochs=recipe.epochs,
            steps_per_epoch=len(epoch_steps(most, recipe.batch_size, recipe.seed, 0)),
            holdout_batches=len(batches_of(holdout_ids, recipe.part_size)) if has_weights else 0,
            test_batches=len(batches_of(np.arange(len(self.test)), recipe.part_size)),
            checkpoint_epochs=recipe.checkpoint.every_epochs,
            samples=len(self.train),
            val_batches=len(batches_of(self.validation[1], recipe.part_size)) if recipe.validates else 0,
            evaluate_epochs=recipe.evaluate.every_epochs,
            best=recipe.checkpoint.best is not None,
            test_passes=2 if recipe.averaged else 1,
            accumulate=recipe.accumulate,
            changes=recipe.changes,
        )
        return whole if self.dry_steps is None else whole.shortened(self.dry_steps)

    @property
    def fingerprints(self) -> dict[str, str]:
        """Fingerprints of the data sets, by which processes check that they read the same data."""
        return {name: fingerprint(getattr(self, name)) for name in self.recipe.data.sets}

    def batches(
        self, index: int, start: Round, replica: int = 0, schedule: RunSchedule | None = None
    ) -> Iterator[Batch]:
        """One replica's share of a student's batches, of all rounds that have one, from the round `start` on.

        One loader serves all rounds: training batches after a test pass are loaded during that pass, and no
        loader process starts between epochs.

        Args:
            index: the student's index in the recipe.
            start: the first round.
            replica: which replica of the student.
            schedule: of the rounds. None: that of the recipe.
        """
        student, recipe = self.recipe.students[index], self.recipe
        rounds = self._training_specs(index, start.step, replica)
        samples = (self.split[1], self.validation[1], np.arange(len(self.test)))
        holdout, val, test = (batches_of(ids, recipe.part_size) for ids in samples)
        # By the pass: which of `_views`, and the ids of each batch.
        passes = {Kind.HOLDOUT: (1, holdout), Kind.VALIDATE: (2, val), Kind.EVALUATE: (3, test)}
        passes[Kind.BEST] = passes[Kind.EVALUATE]

        def specs() -> Iterator[BatchSpec]:
            """The worker's batches of the rounds in order."""
            for round in (schedule or self.schedule).rounds(start):
                if round.kind is Kind.TRAIN:
                    yield next(rounds)
                elif round.kind in passes:
                    view, batches = passes[round.kind]
                    ids_B = batches[self.schedule.test_batch(round)[1]]
                    yield BatchSpec(view, 0, replica_share(ids_B, replica, student.replicas))

        return self._load(self._views(index), specs())

    def training_batches(self, index: int, start: int, replica: int = 0) -> Iterator[Batch]:
        """One replica's share of a student's training batches, from a global step to the end of the run.

        A step has `accumulate` batches.
        """
        return self._load([self._training_views(index)], self._training_specs(index, start, replica))

    def first_batch(self, index: int, replica: int = 0) -> Batch:
        """One replica's share of a student's first batch; one loader process makes it if the run has such.

        Raises:
            DataError: a sample cannot be read or transformed, or the loader process fails.
        """
        specs, views = [next(self._training_specs(index, 0, replica))], self._views(index)
        workers = min(1, self.recipe.data.loader_workers)
        loading = mixed_batches(views, specs, workers=workers, timeout_s=self.recipe.limits.startup_s)
        with of_user_code(DataError, "data.loader_workers: a loader process fails"), closing(loading):
            return next(loading)

    def holdout_batches(self) -> Iterator[Batch]:
        """The held-out samples once, seen through the test view."""
        return self._once(self.train, self.split[1])

    def test_batches(self) -> Iterator[Batch]:
        """The test samples once, seen through the test view."""
        return self._once(self.test, np.arange(len(self.test)))

    def _seed(self, index: int) -> int:
        return student_seed(self.recipe.seed, index, self.recipe.students[index].seed)

    def _views(self, index: int) -> list[AnyViews]:
        """The views of a student's training, held-out, validation and test samples."""
        sets = (self.train, self.validation[0], self.test)
        return [self._training_views(index), *map(self.test_views, sets)]

    def _training_views(self, index: int) -> AnyViews:
        recipe = self.recipe
        seed = self._seed(index) if recipe.distillation.invariant else recipe.seed
        return self.views(self.train, recipe.augment_of(recipe.students[index]), seed)

    def test_views(self, dataset: Dataset) -> AnyViews:
        """The views of a data set's samples in tests; `batches` normalises those of images."""
        return self.views(dataset, self.recipe.data.test_items, self.recipe.seed)

    def views(self, dataset: Dataset, items: Sequence[Mapping[str, Any]], seed: int) -> AnyViews:
        """The views of a data set's samples by some transforms, whose random numbers are of a seed."""
        transforms = transforms_of(self.train, items)
        if isinstance(dataset, ImageDataset):
            return Views(
                dataset, transforms, seed, self.train if isinstance(self.train, ImageDataset) else None
            )
        return SampleViews(dataset, transforms, seed, collate_of(self.recipe.data.collate), self.scale)

    @cached_property
    def scale(self) -> Scale | None:
        """What normalises samples that are no images; None: nothing does."""
        if not self.recipe.data.normalise:
            return None
        with naming_field("data.normalise"):
            return scale_of(self.train, check_samples("data.train", self.train))

    def _training_specs(self, index: int, start: int, replica: int) -> Iterator[BatchSpec]:
        """One replica's share of each training round of a student, from the first of a global step on."""
        replicas, first = self.recipe.students[index].replicas, start * self.recipe.accumulate
        per_epoch = self.schedule.steps_per_epoch
        parts = own_parts(self.recipe, index, self.split[0], self.own[index], per_epoch, start)
        for turn, (epoch, ids_B) in enumerate(parts, first):
            mix = mix_of_round(self.recipe, turn, ids_B)
            if mix is not None:
                mix = mix._replace(partners=replica_share(mix.partners, replica, replicas))
            view = self.recipe.data.view_of(epoch)
            yield BatchSpec(0, view, replica_share(ids_B, replica, replicas), mix)

    def _once(self, dataset: Dataset, ids: Ids) -> Iterator[Batch]:
        specs = (BatchSpec(0, 0, ids_B) for ids_B in batches_of(ids, self.recipe.part_size))
        return self._load([self.test_views(dataset)], specs)

    def _load(self, views: Sequence[AnyViews], schedule: Iterator[BatchSpec]) -> Iterator[Batch]:
        data, limits = self.recipe.data, self.recipe.limits
        return mixed_batches(views, schedule, workers=data.loader_workers, timeout_s=limits.step_s)


@contextmanager
def naming_field(field: str) -> Iterator[None]:
    """Prefix errors of the data and of transforms with the field of the recipe."""
    try:
        yield
    except (DataError, RecipeError) as error:
        raise type(error)(f"{field}: {error.message}", detail=error.detail) from error

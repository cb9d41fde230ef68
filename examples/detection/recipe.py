"""The recipe of a detection run: all fields that change a result or placement, with the paper's values."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import yaml
from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)

from kdcl_dist.config.base import Name, Seed, Strict
from kdcl_dist.config.error_text import describe_errors
from kdcl_dist.config.optim import SGD
from kdcl_dist.config.recipe_file import parse_mapping, read_mapping
from kdcl_dist.config.schedules import MultiStep
from kdcl_dist.config.student import Resources
from kdcl_dist.errors import RecipeError
from kdcl_dist.student.learning_rate import learning_rate

__all__ = ["Coco", "DetectionRecipe", "differences", "dump_recipe", "load_recipe", "parse_recipe"]

#: Images of one step for which a recipe gives its learning rate: the paper's 8 GPUs with 4 each.
PAPER_BATCH = 32
#: Fields without effect on results, and the field in which the arms of a comparison differ.
FREE_FIELDS = ("name", "loader_workers", "resources", "wait_s")


class Coco(Strict):
    """Data in the layout of COCO 2017: ROOT/annotations/instances_SPLIT.json and images in ROOT/SPLIT."""

    root: str
    train: Name = "train2017"
    val: Name = "val2017"


class PaperSGD(SGD):
    """Stochastic gradient descent with the paper's values."""

    lr: PositiveFloat = 0.04
    weight_decay: NonNegativeFloat = 1e-4


class PaperSteps(MultiStep):
    """A tenth of the learning rate at the start of each of the paper's milestones."""

    milestones: list[PositiveInt] = Field(default=[9, 12])


class DetectionRecipe(Strict):
    """A whole run.

    `backbone` is a folder of `kdcl export`, or a file of weights (.pt, .safetensors) of torchvision's
    ResNet-18; null begins with random weights. `optimizer.lr` is that of 32 images a step and is scaled in
    proportion; it is reached after `warmup_steps`. `proposals` are the regions of an image that the heads
    learn from. Images are resized to a shorter side of `min_size`, or a longer of `max_size`, pixels.
    The last epoch always ends with a test. `wait_s`: seconds after which the run gives up a worker that does
    not answer.
    """

    name: Name = "detection"
    seed: Seed = 0
    detector: Literal["faster_rcnn", "mask_rcnn"]
    backbone: str | None = None
    data: Coco
    epochs: PositiveInt = 14
    workers: PositiveInt = 8
    images_per_worker: PositiveInt = 4
    optimizer: PaperSGD = PaperSGD()
    schedule: PaperSteps = PaperSteps()
    warmup_steps: NonNegativeInt = 500
    min_size: PositiveInt = 800
    max_size: PositiveInt = 1333
    proposals: PositiveInt = 512
    test_every_epochs: PositiveInt = 1
    loader_workers: NonNegativeInt = 0
    resources: Resources = Field(default_factory=Resources)
    wait_s: PositiveFloat = 900.0

    @model_validator(mode="after")
    def _is_consistent(self) -> DetectionRecipe:
        if self.min_size > self.max_size:
            raise ValueError(f"min_size: {self.min_size} is more than max_size, which is {self.max_size}")
        if self.schedule.warmup_epochs:
            raise ValueError("schedule.warmup_epochs: detectors are warmed up by warmup_steps; set it to 0")
        if self.resources.gpu not in ("auto", 0, 1):
            raise ValueError(
                f"resources.gpu: {self.resources.gpu} of a GPU, but workers cannot share one: auto, 1 or 0"
            )
        return self

    @property
    def masks(self) -> bool:
        """Whether the detector learns masks besides boxes."""
        return self.detector == "mask_rcnn"

    @property
    def images_per_step(self) -> int:
        """Images of one step, of all workers together."""
        return self.workers * self.images_per_worker

    @property
    def peak_lr(self) -> float:
        """The learning rate after the warm-up, in proportion to the images of a step."""
        return self.optimizer.lr * self.images_per_step / PAPER_BATCH

    def lr(self, step: int, steps_per_epoch: int) -> float:
        """The learning rate of one step, counted from 0 over the whole run."""
        rate = learning_rate(
            self.schedule, self.peak_lr, step=step, steps_per_epoch=steps_per_epoch, epochs=self.epochs
        )
        return rate * min(1.0, (step + 1) / (self.warmup_steps + 1))

    def notes(self) -> list[str]:
        """Consequences of the recipe for the user, one line each."""
        if self.images_per_step == PAPER_BATCH:
            return []
        return [
            f"optimizer.lr {self.optimizer.lr:g} is for {PAPER_BATCH} images a step; with "
            f"{self.workers} x {self.images_per_worker} images it is {self.peak_lr:g}"
        ]


def load_recipe(path: str | Path, overrides: Iterable[str] = ()) -> DetectionRecipe:
    """Read a recipe from a YAML file; `overrides` are `path=value` items as `--set` takes them.

    Raises:
        RecipeError: the file is missing or is not YAML, or a field is unknown or impossible.
    """
    return _validate(read_mapping(path, overrides), str(path))


def parse_recipe(text: str, source: str) -> DetectionRecipe:
    """Read a recipe from YAML text; errors as `load_recipe`."""
    return _validate(parse_mapping(text, source=source), source)


def dump_recipe(recipe: DetectionRecipe) -> str:
    """The complete recipe as YAML, all defaults written out."""
    return str(yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, width=110))


def differences(old: DetectionRecipe, new: DetectionRecipe, *free: str) -> list[str]:
    """The fields that make `new` another run than `old`, a line each, without the fields in `free`."""
    left, right = old.model_dump(mode="json"), new.model_dump(mode="json")
    return [
        f"{name}: {left[name]!r} -> {right[name]!r}"
        for name in left
        if name not in FREE_FIELDS + free and left[name] != right[name]
    ]


def _validate(data: dict[str, object], source: str) -> DetectionRecipe:
    try:
        return DetectionRecipe.model_validate(data)
    except ValidationError as error:
        raise RecipeError(f"{source}: {describe_errors(error, DetectionRecipe)}") from None

"""One student of a recipe: its network, optimiser, schedule, workers and resources."""

from __future__ import annotations

from typing import Annotated, Literal, NamedTuple

from pydantic import (
    Field,
    PositiveInt,
    field_validator,
    model_validator,
)

from kdcl_dist.config.base import Name, Precision, Seed, Strict
from kdcl_dist.config.optim import SGD, MultiStep, Optimizer, Schedule
from kdcl_dist.config.sections import Transform

__all__ = ["Resources", "Student", "Worker"]


#: Names of parts of a run folder that a student's files would overwrite.
RESERVED_NAMES = ("coordinator", "ensemble", "manifest")


class Resources(Strict):
    """What one worker of a student takes: CPU cores (its number of threads) and GPUs (one or a share)."""

    cpu: PositiveInt = 1
    gpu: Annotated[float, Field(ge=0, le=1)] = 0.0


class Student(Strict):
    """One network of the cohort.

    `model` is a built-in name or an import string `package.module:factory`. `seed` decides its initial
    weights and its own stream; null derives it from the recipe's seed and the place in the cohort.
    `weights` are initial weights: a file of `torch.save(model.state_dict())` or a checkpoint's student part.
    `transfer` says that they are of another task: the last linear layer starts afresh, and with "probe" it
    alone learns, with "finetune" all does.
    `augment` replaces data.augment for this student. `epochs` are fewer than the run's for a student that
    learns for a shorter time: its schedule ends then, and it goes on teaching the others as it is.
    `channels_last` keeps images and convolutions with their channels side by side, and `compile` runs the
    training steps through torch.compile: faster on many GPUs, with other last bits.
    `replicas` are workers that share each step's samples evenly and average their gradients; with
    `sync_batchnorm` batch norm takes its statistics over all of them.
    """

    name: Name
    model: str
    seed: Seed | None = None
    weights: str | None = None
    transfer: Literal["probe", "finetune"] | None = None
    augment: list[Transform] | None = None
    epochs: PositiveInt | None = None
    optimizer: Optimizer = SGD()
    schedule: Schedule = MultiStep()
    precision: Precision = "fp32"
    channels_last: bool = False
    compile: bool = False
    replicas: PositiveInt = 1
    sync_batchnorm: bool = False
    accelerator: str | None = None
    resources: Resources = Resources()

    @field_validator("name")
    @classmethod
    def _not_reserved(cls, value: str) -> str:
        if value.lower() in RESERVED_NAMES:
            raise ValueError(f"{', '.join(RESERVED_NAMES)} are names of other parts of a run")
        return value

    @model_validator(mode="after")
    def _batchnorm_can_be_compiled(self) -> Student:
        if self.compile and self.sync_batchnorm:
            raise ValueError(
                "compile: true and sync_batchnorm: true do not go together: torch.compile cannot follow what "
                "the replicas say to each other inside the network"
            )
        return self

    @model_validator(mode="after")
    def _transfer_has_weights(self) -> Student:
        if self.transfer is not None and self.weights is None:
            raise ValueError(
                f"transfer: {self.transfer!r} begins from weights of another task (weights is null)"
            )
        return self


class Worker(NamedTuple):
    """One worker of the cohort: a student's place in the cohort, and which of its replicas it is."""

    student: int
    replica: int
    name: str

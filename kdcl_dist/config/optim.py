"""How a student learns: the optimisers and learning-rate schedules that a recipe can name."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Literal

from pydantic import (
    BeforeValidator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from kdcl_dist.config.base import Strict

__all__ = ["SGD", "Adam", "AdamW", "Constant", "Cosine", "MultiStep", "Optimizer", "Schedule", "Warmup"]


class SGD(Strict):
    """Stochastic gradient descent with momentum."""

    name: Literal["sgd"] = "sgd"
    lr: PositiveFloat = 0.1
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    nesterov: bool = False
    weight_decay: NonNegativeFloat = 5e-4

    @model_validator(mode="after")
    def _nesterov_has_momentum(self) -> SGD:
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov: true needs a momentum above 0 (momentum is 0)")
        return self


class Adam(Strict):
    """Adam; weight decay enters the gradient."""

    name: Literal["adam"] = "adam"
    lr: PositiveFloat = 1e-3
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.999
    eps: PositiveFloat = 1e-8
    weight_decay: NonNegativeFloat = 0.0


class AdamW(Adam):
    """AdamW; weight decay is decoupled from the gradient."""

    name: Literal["adamw"] = "adamw"  # type: ignore[assignment]
    weight_decay: NonNegativeFloat = 1e-2


class Warmup(Strict):
    """Linear warm-up by step from `warmup_lr` to the optimiser's lr over the first epochs."""

    warmup_epochs: NonNegativeInt = 0
    warmup_lr: NonNegativeFloat = 0.0


class Constant(Warmup):
    """The optimiser's lr throughout."""

    name: Literal["constant"] = "constant"


class MultiStep(Warmup):
    """lr times `gamma` at the start of each of the epochs in `milestones`."""

    name: Literal["multistep"] = "multistep"
    milestones: list[PositiveInt] = Field(default_factory=list)
    gamma: PositiveFloat = 0.1

    @field_validator("milestones")
    @classmethod
    def _increasing(cls, value: list[int]) -> list[int]:
        if any(later <= earlier for earlier, later in pairwise(value)):
            raise ValueError("milestones must increase")
        return value


class Cosine(Warmup):
    """Half a cosine by step from the optimiser's lr, after the warm-up, to 0 at the end of the run."""

    name: Literal["cosine"] = "cosine"


def _named(default: str) -> BeforeValidator:
    """Lets a part be written without its name: `optimizer: {lr: 0.05}` is sgd."""
    return BeforeValidator(lambda part: {"name": default} | part if isinstance(part, dict) else part)


Optimizer = Annotated[SGD | Adam | AdamW, Field(discriminator="name"), _named("sgd")]
Schedule = Annotated[Constant | MultiStep | Cosine, Field(discriminator="name"), _named("multistep")]

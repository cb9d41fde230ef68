"""The optimisers and learning-rate schedules that a recipe can name."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Literal

from pydantic import (
    BeforeValidator,
    ConfigDict,
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


#: For the JSON schema only: a part without a name is one of the default kind, so the other kinds need theirs.
NAME_REQUIRED = ConfigDict(json_schema_extra={"required": ["name"]})


class SGD(Strict):
    """Stochastic gradient descent with momentum."""

    name: Literal["sgd"] = Field(default="sgd", description="The optimiser; may be left out.")
    lr: PositiveFloat = Field(default=0.1, description="Learning rate, before the schedule.")
    momentum: float = Field(default=0.9, ge=0, lt=1, description="Factor of the past gradients at each step.")
    nesterov: bool = Field(default=False, description="Nesterov's momentum; needs a `momentum` above 0.")
    weight_decay: NonNegativeFloat = Field(
        default=5e-4, description="Factor of the weights that is added to their gradient."
    )

    @model_validator(mode="after")
    def _nesterov_has_momentum(self) -> SGD:
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov: true needs a momentum above 0 (momentum is 0)")
        return self


class Adam(Strict):
    """Adam."""

    model_config = NAME_REQUIRED

    name: Literal["adam"] = Field(default="adam", description="The optimiser.")
    lr: PositiveFloat = Field(default=1e-3, description="Learning rate, before the schedule.")
    beta1: float = Field(default=0.9, ge=0, lt=1, description="Decay of the mean of the gradients.")
    beta2: float = Field(default=0.999, ge=0, lt=1, description="Decay of the mean of their squares.")
    eps: PositiveFloat = Field(default=1e-8, description="Term that is added to the denominator.")
    weight_decay: NonNegativeFloat = Field(
        default=0.0, description="Factor of the weights that is added to their gradient."
    )


class AdamW(Adam):
    """AdamW: Adam with weight decay that is decoupled from the gradient."""

    name: Literal["adamw"] = Field(default="adamw", description="The optimiser.")  # type: ignore[assignment]
    weight_decay: NonNegativeFloat = Field(
        default=1e-2, description="Factor of the weights that each step subtracts, times the learning rate."
    )


class Warmup(Strict):
    """What all schedules share: a linear warm-up to the optimiser's lr."""

    warmup_epochs: NonNegativeInt = Field(
        default=0, description="Epochs at the start in which the learning rate rises linearly, step by step."
    )
    warmup_lr: NonNegativeFloat = Field(
        default=0.0, description="Learning rate at the first step of the warm-up."
    )


class Constant(Warmup):
    """The optimiser's learning rate throughout."""

    model_config = NAME_REQUIRED

    name: Literal["constant"] = Field(default="constant", description="The schedule.")


class MultiStep(Warmup):
    """The learning rate changes by a factor at given epochs."""

    name: Literal["multistep"] = Field(default="multistep", description="The schedule; may be left out.")
    milestones: list[PositiveInt] = Field(
        default=[], description="Increasing epochs; each change takes effect at the start of the epoch."
    )
    gamma: PositiveFloat = Field(
        default=0.1, description="Factor of the learning rate at each of the `milestones`."
    )

    @field_validator("milestones")
    @classmethod
    def _increasing(cls, value: list[int]) -> list[int]:
        if any(later <= earlier for earlier, later in pairwise(value)):
            raise ValueError("milestones must increase")
        return value


class Cosine(Warmup):
    """Half a cosine by step, from the optimiser's lr after the warm-up to 0 at the end of the epochs."""

    model_config = NAME_REQUIRED

    name: Literal["cosine"] = Field(default="cosine", description="The schedule.")


def _named(default: str) -> BeforeValidator:
    """The name of a part that is written without one: `optimizer: {lr: 0.05}` is sgd."""
    return BeforeValidator(lambda part: {"name": default} | part if isinstance(part, dict) else part)


Optimizer = Annotated[SGD | Adam | AdamW, Field(discriminator="name"), _named("sgd")]
Schedule = Annotated[Constant | MultiStep | Cosine, Field(discriminator="name"), _named("multistep")]

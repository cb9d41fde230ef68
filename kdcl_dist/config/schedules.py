"""The learning-rate schedules that a recipe can name."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Literal

from pydantic import (
    Discriminator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Tag,
    field_validator,
)

from kdcl_dist.config.base import NAME_REQUIRED, OWN, Own, Strict, kind_of, named

__all__ = ["Constant", "Cosine", "MultiStep", "OneCycle", "OwnSchedule", "Poly", "Schedule", "Warmup"]


class Warmup(Strict):
    """A linear warm-up to the optimiser's lr, before the schedule itself."""

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
    """Half a cosine by step, from the optimiser's lr after the warm-up to `min_lr` at the end."""

    model_config = NAME_REQUIRED

    name: Literal["cosine"] = Field(default="cosine", description="The schedule.")
    min_lr: NonNegativeFloat = Field(default=0.0, description="Learning rate at the end.")


class Poly(Warmup):
    """A power by step, from the optimiser's lr after the warm-up to `min_lr` at the end of the epochs.

    `min_lr` + (`lr` - `min_lr`) (1 - progress)^`power`
    """

    model_config = NAME_REQUIRED

    name: Literal["poly"] = Field(default="poly", description="The schedule.")
    power: PositiveFloat = Field(default=1.0, description="The power. `1`: a straight line.")
    min_lr: NonNegativeFloat = Field(default=0.0, description="Learning rate at the end.")


class OneCycle(Strict):
    """One cycle by step: a half cosine up to the optimiser's lr, and one down (Smith and Topin, 2018)."""

    model_config = NAME_REQUIRED

    name: Literal["onecycle"] = Field(default="onecycle", description="The schedule.")
    rise: Annotated[float, Field(gt=0, lt=1)] = Field(
        default=0.3, description="Share of the steps in which the learning rate rises."
    )
    initial_factor: Annotated[float, Field(gt=0, le=1)] = Field(
        default=0.04, description="Learning rate at the first step, relative to the optimiser's."
    )
    final_factor: Annotated[float, Field(ge=0, le=1)] = Field(
        default=4e-6, description="Learning rate at the last step, relative to the optimiser's."
    )


class OwnSchedule(Own):
    """Any schedule, by its import string: `{name: my_schedules:sawtooth, period: 5}`.

    The function gets `lr` (the optimiser's), `step` (from 0), `steps_per_epoch`, `epochs`, and the fields
    that this table does not list. It returns the step's learning rate. It must be a pure function: a resumed
    run asks it anew.
    """


Schedule = Annotated[
    Annotated[Constant, Tag("constant")]
    | Annotated[MultiStep, Tag("multistep")]
    | Annotated[Cosine, Tag("cosine")]
    | Annotated[Poly, Tag("poly")]
    | Annotated[OneCycle, Tag("onecycle")]
    | Annotated[OwnSchedule, Tag(OWN)],
    Discriminator(kind_of),
    named("multistep", "constant", "cosine", "poly", "onecycle"),
]

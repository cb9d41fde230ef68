"""Mixup and cutmix in a recipe."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from kdcl_dist.config.base import Strict

__all__ = ["Mixing"]


class Mixing(Strict):
    """One way to mix the samples of a step in pairs, as `mixup: {alpha: 0.2, probability: 0.5}`.

    Each step draws whether it is mixed so, the same for all students. Labels become class probabilities.
    """

    alpha: Annotated[float, Field(ge=1e-3, le=1e3)] = Field(
        default=1.0, description="Beta(alpha, alpha) gives lambda, a sample's own share of its image."
    )
    probability: Annotated[float, Field(gt=0, le=1)] = Field(
        default=1.0, description="Share of the steps; those of `mixup` and `cutmix` have a sum of at most 1."
    )

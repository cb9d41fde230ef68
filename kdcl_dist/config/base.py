"""The base of all parts of a recipe: unknown fields and conversions are errors, and values are frozen."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["Name", "Precision", "Seed", "Strict"]

Seed = Annotated[int, Field(ge=0, lt=2**63)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=64)]
Precision = Literal["fp32", "bf16", "fp16"]


class Strict(BaseModel):
    """Base of all parts of a recipe, and of tables of recipes."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

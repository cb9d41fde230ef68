"""What every part of a recipe is built on: nothing unknown, nothing converted, nothing changed later."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["Name", "Seed", "Strict"]

Seed = Annotated[int, Field(ge=0, lt=2**63)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=64)]


class Strict(BaseModel):
    """Base of all parts of a recipe, and of tables of recipes."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


Precision = Literal["fp32", "bf16", "fp16"]

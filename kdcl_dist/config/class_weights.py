"""Weights by name in a recipe: of classes, and of teachers."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

__all__ = ["ClassWeights", "Weights", "check_weights"]

LARGEST = 1e6
Weights = dict[str, Annotated[float, Field(gt=0, le=LARGEST)]]


def check_weights(value: dict[str, Any]) -> None:
    """See that each weight is one.

    Raises:
        ValueError: one is not.
    """
    for name, weight in value.items():
        if isinstance(weight, bool) or not (isinstance(weight, (int, float)) and 0 < weight <= LARGEST):
            raise ValueError(f"the weight of {name!r} must be a number above 0, 1e6 at most (got {weight!r})")


def _check(value: Any) -> Any:
    """See that the value is one of both forms; a union would tell an error of each."""
    if value is None or value == "balanced":
        return value
    if not isinstance(value, dict) or not all(isinstance(name, str) for name in value):
        raise ValueError(
            "must be 'balanced', or a weight for each class by its name, as {cat: 1, dog: 2.5}; a name that "
            "is a number needs quotes"
        )
    check_weights(value)
    return value


#: "balanced", or a weight for each class by its name; None: all weights are 1.
ClassWeights = Annotated[Literal["balanced"] | Weights | None, BeforeValidator(_check)]

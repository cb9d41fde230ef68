"""Costs given by hand: `NAME=SECONDS` for a whole batch, `NAME@ROWS=SECONDS` for a number of samples."""

from __future__ import annotations

import math
from collections.abc import Iterable

from kdcl_dist.config.recipe import Recipe
from kdcl_dist.errors import RecipeError
from kdcl_dist.planning.step_model import Cost, Link

__all__ = ["ENSEMBLE", "parse_given", "parse_link"]

#: Name of the coordinator's part of a step; no student can have it.
ENSEMBLE = "ensemble"


def parse_given(items: Iterable[str], recipe: Recipe) -> dict[str, dict[int, Cost]]:
    """The given costs of each student, by name and number of samples; all counts as compute.

    Raises:
        RecipeError: an item has another form, names no student, or gives no positive time.
    """
    found: dict[str, dict[int, Cost]] = {}
    for item in items:
        left, equals, seconds = item.partition("=")
        name, at, rows = left.partition("@")
        if not equals:
            raise RecipeError(f"--given {item!r}: NAME=SECONDS or NAME@ROWS=SECONDS is needed")
        if name not in (*recipe.names, ENSEMBLE):
            raise RecipeError(
                f"--given {item!r}: no student is named {name!r} (have {', '.join(recipe.names)})"
            )
        samples = _number(rows, item, "a number of samples from 1") if at else recipe.part_size
        if samples != int(samples):
            raise RecipeError(f"--given {item!r}: {rows!r} is not a number of samples from 1")
        known = found.setdefault(name, {})
        known[int(samples)] = Cost(0.0, _number(seconds, item, "a positive number of seconds"))
    return found


def parse_link(text: str) -> Link:
    """A link from `SECONDS:BYTES`, latency and bytes per second; raises `RecipeError`."""
    latency, _, bandwidth = text.partition(":")
    try:
        found = Link(float(latency), float(bandwidth))
    except ValueError:
        found = Link(math.nan, math.nan)
    if not (0 <= found.latency_s < math.inf and found.bandwidth > 0):
        raise RecipeError(f"--link {text!r}: SECONDS:BYTES is needed, latency and bytes a second")
    return found


def _number(text: str, item: str, needed: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise RecipeError(f"--given {item!r}: {text!r} is not {needed}")
    return value

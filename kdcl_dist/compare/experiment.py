"""What is compared: a table of arms, each a recipe with overrides, and the seeds of all."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from kdcl_dist.config.base import Name, Seed, Strict
from kdcl_dist.config.error_text import describe_errors
from kdcl_dist.config.recipe import Recipe
from kdcl_dist.config.recipe_file import load_recipe, read_mapping
from kdcl_dist.errors import RecipeError

__all__ = ["Arm", "Job", "Table", "jobs_of", "load_table"]


class Arm(Strict):
    """One row of the table.

    `recipe` is a path relative to the table's file, `set` overrides as `--set` takes them, with the seed in
    place of `{seed}`; `published` are the figures to print beside, by student, in the table's unit.
    """

    name: Name
    recipe: str
    set: list[str] = Field(default_factory=list)
    published: dict[Name, float] = Field(default_factory=dict)


class Table(Strict):
    """A comparison. Figures are percent for top1 and top5, nats for loss."""

    name: Name
    title: str = ""
    metric: Literal["top1", "top5", "loss"] = "top1"
    statistic: Literal["mean", "median"] = "mean"
    seeds: Annotated[list[Seed], Field(min_length=1)]
    baseline: Name | None = None
    arms: Annotated[list[Arm], Field(min_length=1)]

    @field_validator("seeds")
    @classmethod
    def _seeds_differ(cls, value: list[int]) -> list[int]:
        if len(set(value)) < len(value):
            raise ValueError("seeds must differ")
        return value

    @model_validator(mode="after")
    def _arms_fit(self) -> Table:
        names = [arm.name for arm in self.arms]
        if twice := [name for name, count in Counter(names).items() if count > 1]:
            raise ValueError(f"arms: names must differ (more than once: {', '.join(twice)})")
        if self.baseline is not None and self.baseline not in names:
            raise ValueError(f"baseline: no arm is named {self.baseline!r} (have {', '.join(names)})")
        return self


@dataclass(frozen=True)
class Job:
    """One run of the table."""

    arm: str
    seed: int
    recipe: Recipe

    @property
    def name(self) -> str:
        """The run's folder."""
        return f"{self.arm}-seed{self.seed}"


def load_table(path: str | Path) -> Table:
    """Read a table from YAML.

    Raises:
        RecipeError: the file is missing or is not YAML, or a field is unknown or impossible.
    """
    try:
        return Table.model_validate(read_mapping(path))
    except ValidationError as error:
        raise RecipeError(f"{path}: {describe_errors(error, Table)}") from None


def jobs_of(table: Table, folder: Path) -> list[Job]:
    """All runs of a table, seed by seed, so that all arms have figures early.

    Args:
        table: the table.
        folder: where its file lies; recipes are relative to it.

    Raises:
        RecipeError: an arm's recipe is wrong, or a published figure is of no student.
    """
    jobs = []
    for seed in table.seeds:
        for arm in table.arms:
            try:
                overrides = [item.replace("{seed}", str(seed)) for item in arm.set]
                recipe = load_recipe(folder / arm.recipe, [*overrides, f"seed={seed}"])
            except RecipeError as error:
                raise RecipeError(f"arms.{arm.name}: {error.message}") from None
            if unknown := arm.published.keys() - {*recipe.names, "ensemble"}:
                names = ", ".join(sorted(unknown))
                raise RecipeError(f"arms.{arm.name}.published: no student is named {names}")
            jobs.append(Job(arm.name, seed, recipe))
    return jobs

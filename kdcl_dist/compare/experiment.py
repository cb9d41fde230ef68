"""The experiment: a table of arms, each a recipe with overrides, and the seeds of all arms."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from kdcl_dist.config.base import Name, Seed, Strict
from kdcl_dist.config.error_text import describe_errors
from kdcl_dist.config.recipe import Recipe
from kdcl_dist.config.recipe_file import load_recipe, read_mapping
from kdcl_dist.errors import RecipeError

__all__ = ["Arm", "Job", "Table", "jobs_of", "load_table", "only_arms"]


class Arm(Strict):
    """One row of the table.

    `recipe` is a path relative to the table's file. `set` holds overrides as `--set` takes them; the seed
    replaces `{seed}` in them. `published` holds figures of a paper by student, in the table's unit; the
    summary prints them beside the measured ones.
    """

    name: Name
    recipe: str
    set: list[str] = Field(default_factory=list)
    published: dict[Name, float] = Field(default_factory=dict)


class Table(Strict):
    """An experiment. Figures are percent for top1 and top5, nats for loss."""

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
        """Name of the run's folder."""
        return f"{self.arm}-seed{self.seed}"


def load_table(path: str | Path) -> Table:
    """Read a table from YAML.

    Raises:
        RecipeError: the file is missing or not YAML, or a field is unknown or has an impossible value.
    """
    try:
        return Table.model_validate(read_mapping(path))
    except ValidationError as error:
        raise RecipeError(f"{path}: {describe_errors(error, Table)}") from None


def jobs_of(table: Table, folder: Path) -> list[Job]:
    """All runs of a table, ordered by seed: every arm has a first result early.

    Args:
        table: the experiment.
        folder: folder of the table's file; the paths of recipes are relative to it.

    Raises:
        RecipeError: an arm's recipe is wrong, or a published figure names no student of the recipe.
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


def only_arms(table: Table, jobs: list[Job], names: Collection[str]) -> list[Job]:
    """The jobs of some arms; of all arms if none is named.

    Raises:
        RecipeError: the table has no such arm.
    """
    have = [arm.name for arm in table.arms]
    if unknown := [name for name in names if name not in have]:
        raise RecipeError(f"--only: no arm is named {unknown[0]!r} (have {', '.join(have)})")
    return [job for job in jobs if not names or job.arm in names]

"""`kdcl recipe`: the reference and the JSON schema of the recipe's fields, and an example."""

from __future__ import annotations

import json

import click

from kdcl_dist.cli.group import kdcl, reports_errors
from kdcl_dist.utils.data_specs import DEMO

__all__ = ["recipe"]


@kdcl.group()
def recipe() -> None:
    """Print the reference or the JSON schema of the recipe's fields, or an example."""


@recipe.command()
@reports_errors
def schema() -> None:
    """The JSON schema of recipes, for editors."""
    from kdcl_dist.config.reference import recipe_schema

    click.echo(json.dumps(recipe_schema(), indent=2, ensure_ascii=False))


@recipe.command()
@reports_errors
def reference() -> None:
    """All fields with type, default and description, as Markdown."""
    from kdcl_dist.config.reference import recipe_reference

    click.echo(recipe_reference(), nl=False)


@recipe.command()
@reports_errors
def example() -> None:
    """The recipe of `kdcl demo`, to begin one of your own from."""
    click.echo((DEMO / "digits.yaml").read_text(encoding="utf-8"), nl=False)

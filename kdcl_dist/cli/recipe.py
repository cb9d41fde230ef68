"""`kdcl recipe`: the reference of the recipe's fields."""

from __future__ import annotations

import json

import click

from kdcl_dist.cli.group import kdcl, reports_errors

__all__ = ["recipe"]


@kdcl.group()
def recipe() -> None:
    """Print the reference of the recipe's fields."""


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

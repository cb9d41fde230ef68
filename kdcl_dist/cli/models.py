"""`kdcl models`."""

from __future__ import annotations

import click

from kdcl_dist.cli.group import kdcl

__all__ = ["models"]


@kdcl.command()
def models() -> None:
    """List the built-in networks, with their parameters and the multiply-adds for one image."""
    from kdcl_dist.models import names
    from kdcl_dist.models.cost import built_in_cost
    from kdcl_dist.models.registry import GROUPS

    titles = {
        usual: "{1}x{2}x{0}, {3} classes".format(*usual.shape_CHW, usual.classes)  # the usual order in text
        for usual in GROUPS
    }
    width = max(len(text) for text in (*titles.values(), *(f"  {name}" for name in names())))
    for usual, group in GROUPS.items():
        click.echo(f"{titles[usual]:<{width}}  {'parameters':>11}  {'multiply-adds':>14}")
        for name in group:
            cost = built_in_cost(name, usual)
            click.echo(f"{'  ' + name:<{width}}  {cost.parameters:>11,}  {cost.multiply_adds:>14,}")

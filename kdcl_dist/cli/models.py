"""`kdcl models`."""

from __future__ import annotations

import click

from kdcl_dist.cli.group import kdcl

__all__ = ["models"]


@kdcl.command()
def models() -> None:
    """List the built-in networks, with their parameters and the multiply-adds for one image."""
    from kdcl_dist.models.built_in import COSTS

    titles = {
        usual: "{1}x{2}x{0}, {3} classes".format(*usual.shape_CHW, usual.classes)  # the usual order in text
        for usual in COSTS
    }
    names = [f"  {name}" for group in COSTS.values() for name in group]
    width = max(map(len, [*titles.values(), *names]))
    for usual, group in COSTS.items():
        click.echo(f"{titles[usual]:<{width}}  {'parameters':>11}  {'multiply-adds':>14}")
        for name, cost in group.items():
            click.echo(f"{'  ' + name:<{width}}  {cost.parameters:>11,}  {cost.multiply_adds:>14,}")

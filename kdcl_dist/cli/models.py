"""`kdcl models`: the built-in networks and their cost."""

from __future__ import annotations

import click

from kdcl_dist.cli.group import kdcl

__all__ = ["models"]


OTHERS = """\
networks of libraries, with random weights
  torchvision:NAME  such as torchvision:vit_b_16
  timm:NAME         such as timm:resnet18; extra `timm`
  hf:FOLDER         a folder with a config.json of transformers; extra `transformers`
  hf:KIND           a kind of image classifier of transformers, such as hf:vit
arguments: `model: {name: NAME, argument: value}`; your own: `model: package.module:factory`"""


@kdcl.command()
def models() -> None:
    """List the built-in networks, with their parameters and the multiply-adds for one image.

    Below them stand the prefixes of other libraries' networks.
    """
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
    click.echo(f"\n{OTHERS}")

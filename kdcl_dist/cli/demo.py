"""`kdcl demo`: `kdcl train` of the recipe that comes with the package."""

from __future__ import annotations

from typing import Any

import click

from kdcl_dist.cli.group import kdcl
from kdcl_dist.cli.train import train
from kdcl_dist.utils.data_specs import DEMO

__all__ = ["demo"]


@kdcl.command(params=train.params[1:])
@click.pass_context
def demo(context: click.Context, /, **options: Any) -> None:
    """Train three small networks on handwritten digits that come with the package."""
    context.invoke(train, recipe=str(DEMO / "digits.yaml"), **options)

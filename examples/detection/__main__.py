"""`python -m examples.detection`: train detectors, draw what they find, and compare backbones."""

from __future__ import annotations

import sys

import click

from kdcl_dist.cli.group import reports_errors

STORAGE = click.option(
    "--storage", default="runs", show_default=True, help="Path or URI of the folder of runs."
)
SET = click.option("--set", "overrides", multiple=True, metavar="PATH=VALUE", help="Override a field.")


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
def detection() -> None:
    """Fine-tune Faster R-CNN and Mask R-CNN on a ResNet-18 of kdcl, on data in COCO's format."""


@detection.command()
@click.argument("recipe", type=click.Path())
@SET
@STORAGE
@click.option("--name", help="The run's folder below it. [default: the recipe's name]")
@click.option("--resume", is_flag=True, help="Continue from the newest checkpoint.")
@reports_errors
def train(recipe: str, overrides: tuple[str, ...], storage: str, name: str | None, resume: bool) -> None:
    """Train the detector of a RECIPE."""
    from examples.detection.driver import train as run_training
    from examples.detection.recipe import load_recipe

    wanted = load_recipe(recipe, overrides)
    folder, finished = run_training(wanted, storage, name or wanted.name, resume=resume)
    click.echo(f"run folder: {folder}")
    if not finished:
        click.echo("stopped after a checkpoint; continue with --resume", err=True)
        sys.exit(130)


if __name__ == "__main__":
    detection()

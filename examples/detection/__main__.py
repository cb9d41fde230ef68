"""`python -m examples.detection`: train detectors, draw their detections, and compare backbones."""

from __future__ import annotations

import sys
from pathlib import Path

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
@click.option("--resume", is_flag=True, help="Continue from the latest checkpoint.")
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


@detection.command()
@click.argument("recipes", nargs=-1, required=True, type=click.Path(), metavar="RECIPE...")
@click.option("--vanilla", required=True, help="Backbone of a network that was trained alone.")
@click.option("--kdcl", required=True, help="Backbone of a network that was trained in a cohort.")
@SET
@STORAGE
@reports_errors
def compare(
    recipes: tuple[str, ...], vanilla: str, kdcl: str, overrides: tuple[str, ...], storage: str
) -> None:
    """Train each RECIPE with both backbones, and print their table beside the paper's.

    Backbones are folders of `kdcl export` or files of weights. Finished runs are skipped when it is called
    again, stopped ones resumed.
    """
    from examples.detection.compare import make_table, train_arms
    from examples.detection.recipe import load_recipe
    from kdcl_dist.run.storage import Folder

    pairs = train_arms([load_recipe(path, overrides) for path in recipes], (vanilla, kdcl), storage)
    if pairs is None:
        click.echo("stopped; the same command goes on", err=True)
        sys.exit(130)
    page = make_table(pairs)
    Folder(storage).write("detection.md", page.encode())
    click.echo(f"\n{page}\nwritten to {Folder(storage)}/detection.md")


@detection.command()
@click.option("--vanilla", "vanilla_runs", multiple=True, required=True, metavar="RUN")
@click.option("--kdcl", "kdcl_runs", multiple=True, required=True, metavar="RUN")
@reports_errors
def table(vanilla_runs: tuple[str, ...], kdcl_runs: tuple[str, ...]) -> None:
    """Print the table of finished runs, as many of one backbone as of the other."""
    from examples.detection.compare import make_table
    from kdcl_dist.errors import UserError

    if len(vanilla_runs) != len(kdcl_runs):
        raise UserError(f"--vanilla is given {len(vanilla_runs)} times and --kdcl {len(kdcl_runs)} times")
    click.echo(make_table(list(zip(vanilla_runs, kdcl_runs, strict=True))))


@detection.command()
@click.argument("run")
@click.option("--count", type=click.IntRange(1), default=4, show_default=True, help="Images at most.")
@click.option("--score", type=click.FloatRange(0, 1), default=0.5, show_default=True, help="Least score.")
@click.option("--to", type=click.Path(path_type=Path), default=Path("predictions.png"), show_default=True)
@reports_errors
def picture(run: str, count: int, score: float, to: Path) -> None:
    """Draw the detections of a RUN's latest checkpoint beside the annotations."""
    from examples.detection.coco import require_pycocotools
    from examples.detection.driver import picture as draw_picture
    from kdcl_dist.errors import RunFolderError

    require_pycocotools()
    data = draw_picture(run, count=count, score=score)
    try:
        to.write_bytes(data)
    except OSError as error:
        raise RunFolderError(f"--to {str(to)!r} cannot be written: {error.strerror}") from None
    click.echo(to)


@detection.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--train", "train_count", type=click.IntRange(1), default=200, show_default=True)
@click.option("--val", "val_count", type=click.IntRange(1), default=40, show_default=True)
@reports_errors
def draw(folder: Path, train_count: int, val_count: int) -> None:
    """Draw a small data set of shapes in COCO's layout into a new FOLDER, for trials."""
    from examples.detection.shapes import draw_shapes

    draw_shapes(folder, train=train_count, val=val_count)
    click.echo(f"{train_count} and {val_count} images: {folder}")


if __name__ == "__main__":
    detection()

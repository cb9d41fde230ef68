"""`kdcl logits`: the logits of a network on a data set, as a file that can be a member of a cohort."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from kdcl_dist.cli.group import allows_imports, echo, kdcl, reports_errors, takes_device, takes_epoch

if TYPE_CHECKING:
    from kdcl_dist.run.epochs import Epoch

__all__ = ["logits"]


@kdcl.command()
@click.argument("source")
@click.option("--out", required=True, metavar="FILE", help="The file to write, such as teacher.arrow.")
@click.option("--data", metavar="SET", help="The data set, as data.train of a recipe names it.")
@click.option(
    "--recipe",
    metavar="FILE",
    help="The recipe that the file is for, instead of --data: its training set and its data.views.",
)
@click.option("--student", help="Of a run: name of the student, or `ensemble`. [default: ensemble]")
@click.option("--views", type=click.IntRange(0), help="Training views of a sample beside the test view.")
@click.option("--top-k", type=click.IntRange(1), help="Keep the largest logits and the total of the others.")
@click.option("--dtype", type=click.Choice(["fp32", "fp16"]), default="fp32", show_default=True)
@takes_epoch
@takes_device
@allows_imports
@reports_errors
def logits(
    source: str,
    out: str,
    data: str | None,
    recipe: str | None,
    student: str | None,
    epoch: Epoch | None,
    device: str,
    allow_imports: tuple[str, ...],
    **form: Any,
) -> None:
    """Write the logits of SOURCE on all samples of a data set as one file, which can be a student of a run.

    SOURCE is a run folder, an export, or a file .npy of logits (samples, classes) in the data set's order.
    """
    from kdcl_dist.config.recipe_file import load_recipe

    wanted = None if recipe is None else load_recipe(recipe, ())  # a mistake shows before the imports
    from rich.console import Console
    from rich.progress import Progress

    from kdcl_dist.export.logit_sources import open_source
    from kdcl_dist.export.logits import Form, plan, write

    opened = open_source(
        source,
        student=student,
        epoch=epoch,
        rows=None if wanted is None else wanted.part_size,
        device=device,
        warn=lambda text: echo(text, err=True),
        allow_imports=allow_imports,
    )
    planned = plan(opened, out, Form(**form), data=data, recipe=wanted)
    echo(planned)
    console = Console()
    with Progress(console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("rows", total=planned.rows)
        write(planned, lambda rows: progress.update(task, completed=rows))
    echo(f"written; a recipe takes it as a student: {{name: teacher, logits: {out}}}")

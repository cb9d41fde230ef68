"""`kdcl train`."""

from __future__ import annotations

import sys

import click

from kdcl_dist.cli.group import echo, kdcl, reports_errors

__all__ = ["train"]


@kdcl.command()
@click.argument("recipe", type=click.Path())
@click.option("--set", "overrides", multiple=True, metavar="PATH=VALUE", help="Override a field.")
@click.option("--launcher", type=click.Choice(["ray", "local"]), default="ray", show_default=True)
@click.option("--storage", default="runs", show_default=True, help="Path or URI of the folder of runs.")
@click.option("--name", help="The run's folder below it. [default: the recipe's name and the time]")
@click.option(
    "--resume", is_flag=True, help="Continue from the latest checkpoint; without --name, of the latest run."
)
@reports_errors
def train(
    recipe: str, overrides: tuple[str, ...], launcher: str, storage: str, name: str | None, resume: bool
) -> None:
    """Train the cohort of a RECIPE."""
    from kdcl_dist.config.recipe_file import file_digest, load_recipe

    wanted, digest = load_recipe(recipe, overrides), file_digest(recipe)
    if launcher == "local":
        from kdcl_dist.launch.forkserver import start_server

        start_server()  # it imports at the same time as this process does below
    from rich.console import Console

    from kdcl_dist.cli.training_display import display, results_table
    from kdcl_dist.config.differences import changes
    from kdcl_dist.run.events import Note
    from kdcl_dist.run.prepare import resumed_recipe
    from kdcl_dist.run.uris import displayed
    from kdcl_dist.training import train as run_training

    console = Console()
    chosen = resumed_recipe(wanted, digest, overrides, storage, name) if resume else wanted
    with display(console) as shown:
        if kept := changes(wanted, chosen):
            shown.handle(Note(f"as the run began: {'; '.join(kept)}"))
        result = run_training(
            chosen,
            launcher=launcher,  # type: ignore[arg-type]
            storage=storage,
            name=name,
            resume=resume,
            recipe_file=digest,
            on_event=shown.handle,
        )
    if result.metrics:
        console.print(results_table(result.metrics, "test results"))
    echo(f"run folder: {displayed(result.path)}")
    if not result.finished:
        echo("stopped after a checkpoint; continue with --resume", err=True)
        sys.exit(130)

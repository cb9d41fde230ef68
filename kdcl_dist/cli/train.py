"""`kdcl train`: the cohort of a recipe, trained; or some steps of it (`--dry-run`)."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import click

from kdcl_dist.cli.group import (
    echo,
    kdcl,
    reports_errors,
    takes_launcher,
    takes_overrides,
    takes_storage,
)

if TYPE_CHECKING:
    from kdcl_dist.config.recipe import Recipe

__all__ = ["train"]


@kdcl.command()
@click.argument("recipe", type=click.Path())
@takes_overrides
@takes_launcher
@takes_storage
@click.option("--name", help="The run's folder below it. [default: the recipe's name and the time]")
@click.option(
    "--resume", is_flag=True, help="Continue from the latest checkpoint; without --name, of the latest run."
)
@click.option(
    "--dry-run",
    type=click.IntRange(min=1),
    metavar="STEPS",
    help="Take this many steps, report memory, times and sizes, and leave nothing.",
)
@click.option("--json", "as_json", is_flag=True, help="The report of --dry-run as JSON.")
@reports_errors
def train(
    recipe: str,
    overrides: tuple[str, ...],
    launcher: str,
    storage: str,
    name: str | None,
    resume: bool,
    dry_run: int | None,
    as_json: bool,
) -> None:
    """Train the cohort of a RECIPE.

    A recipe is a YAML file: `kdcl recipe example` prints one, `kdcl recipe reference` describes its fields.
    Ctrl-C takes a checkpoint; --resume goes on from there.
    """
    if dry_run is not None and (name is not None or resume):
        raise click.UsageError("--dry-run takes no --name and no --resume: it leaves no run")
    if as_json and dry_run is None:
        raise click.UsageError("--json goes with --dry-run only")
    from kdcl_dist.config.recipe_file import file_digest, load_recipe

    wanted, digest = load_recipe(recipe, overrides), file_digest(recipe)
    if launcher == "local":
        from kdcl_dist.launch.forkserver import start_server

        start_server()  # it imports at the same time as this process does below
    if dry_run is None:
        _train(wanted, digest, overrides, launcher, storage, name, resume)
    else:
        _try(wanted, dry_run, launcher, storage, as_json)


def _try(recipe: Recipe, steps: int, launcher: str, storage: str, as_json: bool) -> None:
    """Take some steps and report what they show; with JSON all else goes to standard error."""
    from kdcl_dist.cli.lasting_output import lasting_console
    from kdcl_dist.cli.training_display import display
    from kdcl_dist.cli.trial_display import memory_table, trial_lines
    from kdcl_dist.trial import try_run

    with display(lasting_console(stderr=as_json)) as shown:
        found = try_run(
            recipe,
            steps,
            launcher=launcher,  # type: ignore[arg-type]
            storage=storage,
            on_event=shown.handle,
        )
    if as_json:
        click.echo(json.dumps(found.as_dict(), indent=2))
        return
    lasting_console().print(memory_table(found))
    for line in trial_lines(found):
        echo(line)


def _train(
    wanted: Recipe,
    digest: str,
    overrides: tuple[str, ...],
    launcher: str,
    storage: str,
    name: str | None,
    resume: bool,
) -> None:
    from kdcl_dist.cli.lasting_output import lasting_console
    from kdcl_dist.cli.training_display import display, results_table
    from kdcl_dist.config.differences import changes
    from kdcl_dist.run.data_wait import read_data_wait
    from kdcl_dist.run.events import Note
    from kdcl_dist.run.prepare import resumed_recipe
    from kdcl_dist.run.uris import displayed
    from kdcl_dist.training import train as run_training

    console = lasting_console()
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
    if waits := read_data_wait(result.path):
        echo(waits)
    echo(f"run folder: {displayed(result.path)}")
    if not result.finished:
        echo("stopped after a checkpoint; continue with --resume", err=True)
        sys.exit(130)

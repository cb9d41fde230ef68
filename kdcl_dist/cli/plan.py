"""`kdcl plan`: the predicted step of a cohort, and replicas that shorten it."""

from __future__ import annotations

import click

from kdcl_dist.cli.group import echo, kdcl, reports_errors, takes_device, takes_overrides

__all__ = ["plan"]


@kdcl.command()
@click.argument("recipe", type=click.Path())
@takes_overrides
@click.option("--workers", type=int, help="Workers available. [default: as many as the recipe asks for]")
@click.option(
    "--given",
    multiple=True,
    metavar="NAME[@ROWS]=SECONDS",
    help="Instead of measuring: a student's step for the whole batch, or for ROWS samples; or 'ensemble'.",
)
@click.option("--link", metavar="SECONDS:BYTES", help="Latency and bytes per second between all workers.")
@click.option(
    "--cores", type=click.IntRange(1), help="CPU cores that all workers share. [default: as measured]"
)
@takes_device
@reports_errors
def plan(
    recipe: str,
    overrides: tuple[str, ...],
    workers: int | None,
    given: tuple[str, ...],
    link: str | None,
    cores: int | None,
    device: str,
) -> None:
    """Predict the step of a RECIPE's cohort, and propose replicas that shorten it.

    The command measures each student's step on this machine, unless it is given. If all are given, it
    measures nothing, and assumes that each worker has cores of its own unless --cores is given. --device is
    that of students with resources.gpu: auto.
    """
    from kdcl_dist.config.recipe_file import load_recipe
    from kdcl_dist.planning.given import parse_given, parse_link
    from kdcl_dist.planning.proposal import check_workers, propose
    from kdcl_dist.planning.survey import survey
    from kdcl_dist.planning.table import show

    loaded = load_recipe(recipe, overrides)
    known = parse_given(given, loaded)
    number = len(loaded.workers) if workers is None else workers
    check_workers(number, len(loaded.networks))
    found = survey(
        loaded,
        number,
        known,
        link=parse_link(link) if link is not None else None,
        cores=cores,
        device=device,
        on_progress=lambda text: echo(text, err=True),
    )
    click.echo(show(found, propose(found.model, number), number))

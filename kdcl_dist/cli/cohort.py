"""`kdcl cohort`: a student joins a run that trains, or leaves it."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import click

from kdcl_dist.cli.group import echo, kdcl, reports_errors

if TYPE_CHECKING:
    from kdcl_dist.config.recipe import Recipe
    from kdcl_dist.run.storage import Folder

__all__ = ["cohort"]


@kdcl.group()
@click.argument("run")
@click.pass_context
def cohort(context: click.Context, run: str) -> None:
    """Change who takes part in a RUN while it trains, after its next checkpoint at an epoch's end."""
    context.obj = run


@cohort.command()
@click.argument("student", type=click.Path())
@click.option("--no-rehearsal", is_flag=True, help="Do not try the student here first, in a step on the CPU.")
@click.pass_obj
@reports_errors
def add(run: str, student: str, no_rehearsal: bool) -> None:
    """Let one more student join: STUDENT is a YAML file with its fields, as in a recipe."""
    from kdcl_dist.config.recipe_file import read_mapping
    from kdcl_dist.errors import PreflightError
    from kdcl_dist.launch.preflight.rehearsal import rehearse
    from kdcl_dist.run.cohort_requests import Request, apply, ask

    recipe, folder, epoch = _training(run)
    request = Request(add=read_mapping(student))
    wanted = apply(recipe, request, epoch)
    if not no_rehearsal:
        found = rehearse(wanted, len(recipe.students), "cpu", "127.0.0.1")
        if found.problem is not None:
            raise PreflightError(found.problem)
    ask(folder, request)
    echo(f"{wanted.names[-1]} joins after the next checkpoint at an epoch's end")


@cohort.command()
@click.argument("name")
@click.pass_obj
@reports_errors
def remove(run: str, name: str) -> None:
    """Let the student NAME leave; its last weights stay in the run's checkpoints."""
    from kdcl_dist.run.cohort_requests import Request, apply, ask

    recipe, folder, epoch = _training(run)
    request = Request(remove=name)
    apply(recipe, request, epoch)
    ask(folder, request)
    echo(f"{name} leaves after the next checkpoint at an epoch's end")


def _training(run: str) -> tuple[Recipe, Folder, int]:
    """The recipe and the folder of a run that trains, and the epoch, from 1, in which it is at least.

    Raises:
        RunFolderError: it is no run, or does not train.
    """
    from kdcl_dist.errors import CheckpointError, RunFolderError
    from kdcl_dist.run.checkpoint import read_manifest, steps
    from kdcl_dist.run.record import read_record
    from kdcl_dist.run.run import load_run

    recipe, folder = load_run(run)
    state = read_record(folder).get("state", "unknown")
    if state not in ("starting", "running", "changing"):
        raise RunFolderError(f"{str(folder)!r} does not train: it is {state}")
    done = 0
    for step in steps(folder):
        with contextlib.suppress(CheckpointError):  # the last may be in the making
            done = read_manifest(folder, step).epoch
    return recipe, folder, done + 1

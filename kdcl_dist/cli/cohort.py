"""`kdcl cohort`: a student joins a run that trains, or leaves it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from kdcl_dist.cli.group import allows_imports, echo, kdcl, reports_errors

if TYPE_CHECKING:
    from collections.abc import Collection

    from kdcl_dist.config.recipe import Recipe
    from kdcl_dist.run.storage import Folder

__all__ = ["cohort"]


@kdcl.group()
@click.argument("run")
@click.pass_context
def cohort(context: click.Context, run: str) -> None:
    """Change who takes part in a RUN while it trains, at the end of an epoch."""
    context.obj = run


@cohort.command()
@click.argument("student", type=click.Path())
@click.option("--no-rehearsal", is_flag=True, help="Do not try the student here first, in a step on the CPU.")
@allows_imports
@click.pass_obj
@reports_errors
def add(run: str, student: str, no_rehearsal: bool, allow_imports: tuple[str, ...]) -> None:
    """Let one more student join: STUDENT is a YAML file with its fields, as in a recipe."""
    from kdcl_dist.config.recipe_file import read_mapping
    from kdcl_dist.run.cohort_requests import Request, apply, ask

    recipe, folder, epoch = _training(run)
    request = Request(add=read_mapping(student))
    wanted = apply(recipe, request, epoch)
    if not no_rehearsal:
        _rehearse(wanted, folder, allow_imports)
    ask(folder, request)
    echo(f"{wanted.names[-1]} joins at the end of an epoch, as soon as it is ready")


def _rehearse(wanted: Recipe, folder: Folder, allow_imports: Collection[str]) -> None:
    """Try the last student of a recipe here.

    Raises:
        ImportRefused: the run's recipe names a module that is not allowed.
        PreflightError: the student cannot train.
    """
    from kdcl_dist.config.stored_imports import check_stored_imports, import_strings
    from kdcl_dist.errors import PreflightError
    from kdcl_dist.evaluation import with_data_here
    from kdcl_dist.launch.preflight.rehearsal import rehearse

    for text in sorted(import_strings(wanted)):
        check_stored_imports({"recipe.yaml": text}, str(folder), allow_imports)
    here = with_data_here(wanted, folder)
    found = rehearse(here, len(here.students) - 1, "cpu", "127.0.0.1")
    if found.problem is not None:
        raise PreflightError(found.problem)


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
    echo(f"{name} leaves at the end of an epoch")


def _training(run: str) -> tuple[Recipe, Folder, int]:
    """The recipe of a run that trains, with what is asked for already, and its folder.

    The third is the epoch, from 1, after which its cohort changes at the earliest.

    Raises:
        RunFolderError: it is no run, or does not train.
        RecipeError: its cohort does not change any more.
    """
    from kdcl_dist.errors import RunFolderError
    from kdcl_dist.run.cohort_requests import next_change, requested
    from kdcl_dist.run.metrics import recorded_epochs
    from kdcl_dist.run.record import read_record
    from kdcl_dist.run.run import load_run
    from kdcl_dist.utils.process import is_dead

    recipe, folder = load_run(run)
    record = read_record(folder)
    state = record.get("state", "unknown")
    if state not in ("starting", "running"):
        raise RunFolderError(f"{str(folder)!r} does not train: it is {state}")
    if is_dead(record.get("launcher", "")):
        raise RunFolderError(f"{str(folder)!r} does not train: its process has died")
    epoch = next_change(recipe, 1 + max(recorded_epochs(folder), default=-1))
    return requested(recipe, folder, epoch), folder, epoch

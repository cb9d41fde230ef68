"""`kdcl preflight`: the checks of all hosts before a run."""

from __future__ import annotations

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
    from kdcl_dist.launch.preflight.checks import Check

__all__ = ["preflight"]


@kdcl.command()
@click.argument("recipe", type=click.Path())
@takes_overrides
@takes_launcher
@takes_storage
@reports_errors
def preflight(recipe: str, overrides: tuple[str, ...], launcher: str, storage: str) -> None:
    """Check whether the hosts are ready to train the cohort of a RECIPE.

    Every run on Ray starts with the same checks.
    """
    from kdcl_dist.config.recipe_file import load_recipe

    wanted = load_recipe(recipe, overrides)  # a mistake shows before the imports, which take seconds
    from kdcl_dist.launch.preflight.checks import require
    from kdcl_dist.run.prepare import runs_folder
    from kdcl_dist.tracking.tracking import check_trackers

    check_trackers(wanted)
    folder = runs_folder(storage, wanted.limits.patience_s)
    if launcher == "local":
        from kdcl_dist.launch import local

        checks = local.check(wanted, folder)
    else:
        from kdcl_dist.launch.ray import driver

        checks = driver.check(wanted, folder, lambda event: echo(getattr(event, "text", "")))
    for check in checks:
        _show(check)
    require(checks, lambda text: echo(f"warning: {text}", err=True))


def _show(check: Check) -> None:
    state = "failed" if check.failures else "warning" if check.warnings else "ok"
    echo(f"{state:<8} {check.name:<10} {check.figure}")

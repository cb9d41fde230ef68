"""`kdcl submit`: `kdcl train` as a job of a Ray cluster."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import click

from kdcl_dist.cli.group import echo, kdcl, reports_errors, takes_overrides

__all__ = ["submit"]


@kdcl.command()
@click.argument("recipe", type=click.Path())
@click.option("--address", required=True, help="The cluster, such as http://10.0.0.10:8265.")
@click.option("--storage", required=True, help="As of `kdcl train`: a path or URI that all hosts share.")
@takes_overrides
@click.option("--name", help="The run's folder below the storage.")
@click.option(
    "--resume", is_flag=True, help="Continue from the latest checkpoint; without --name, of the latest run."
)
@click.option("--working-dir", default=".", show_default=True, help="Folder to upload; the recipe is in it.")
@click.option(
    "--runtime-env",
    type=click.Path(),
    help="File with the job's runtime environment. [default: as cluster/runtime_env.yaml]",
)
@click.option("--no-wait", is_flag=True, help="End when the job is submitted.")
@reports_errors
def submit(
    recipe: str,
    address: str,
    storage: str,
    overrides: tuple[str, ...],
    name: str | None,
    resume: bool,
    working_dir: str,
    runtime_env: str | None,
    no_wait: bool,
) -> None:
    """Run `kdcl train RECIPE` as a job of a Ray cluster.

    The job's output is shown until the job ends. Ctrl-C ends the output, and the job goes on.
    """
    from kdcl_dist.config.recipe_file import load_recipe, read_mapping

    root = Path(working_dir).resolve()
    wanted, within = load_recipe(recipe, overrides), _within(recipe, root)
    command = _command(within, overrides, storage, name, resume)
    from kdcl_dist.launch.ray.jobs import RUNTIME_ENV, Jobs
    from kdcl_dist.launch.ray.upload import check_job

    environment = read_mapping(runtime_env) if runtime_env else RUNTIME_ENV
    jobs = Jobs(address)  # tells of a wrong address or token at once, where a trial build takes seconds
    check_job(wanted, within, root, environment, lambda text: echo(f"warning: {text}", err=True))
    job = jobs.submit(command, working_dir, environment)
    echo(f"job {job}: {jobs.advice(job)}")
    if no_wait:
        return
    try:
        code = jobs.follow(job, lambda text: click.echo(text, nl=False))
    except KeyboardInterrupt:
        click.echo(f"\nkdcl: the job goes on: {jobs.advice(job)}", err=True)
        sys.exit(130)
    sys.exit(code)


def _within(recipe: str, root: Path) -> str:
    """The recipe's path in the uploaded folder."""
    from kdcl_dist.errors import UserError

    path = Path(recipe).resolve()
    if not (root.is_dir() and path.is_relative_to(root)):
        raise UserError(f"{recipe!r} is not in the folder that is uploaded (--working-dir {str(root)!r})")
    return str(path.relative_to(root))


def _command(recipe: str, overrides: tuple[str, ...], storage: str, name: str | None, resume: bool) -> str:
    """The job's command line, for a shell in the uploaded folder."""
    from kdcl_dist.errors import UserError

    if "://" not in storage and not Path(storage).is_absolute():
        raise UserError(f"--storage {storage!r}: an absolute path or a URI is needed, the same on all hosts")
    words = ["kdcl", "train", recipe, "--storage", storage]
    words += [word for override in overrides for word in ("--set", override)]
    words += ["--name", name] if name else []
    words += ["--resume"] if resume else []
    return shlex.join(words)

"""The command group, and the report of errors that all commands share."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import click

from kdcl_dist.errors import KdclError, PreflightError, UserError
from kdcl_dist.utils.text import shown
from kdcl_dist.version import __version__

__all__ = [
    "allows_imports",
    "echo",
    "echo_error",
    "kdcl",
    "reports_errors",
    "takes_device",
    "takes_epoch",
    "takes_launcher",
    "takes_overrides",
    "takes_storage",
]


def echo(text: object, *, err: bool = False) -> None:
    """Print one line, as `shown`; on standard error if `err`."""
    click.echo(shown(str(text)), err=err)


def echo_error(error: KdclError) -> None:
    """Print an error on standard error: in one line, or in a line for each failure of `PreflightError`.

    The traceback of a failed run stands above its error.
    """
    if error.detail and not isinstance(error, UserError):
        for line in error.detail.rstrip().split("\n"):
            echo(line, err=True)
    kind = "error" if isinstance(error, UserError) else type(error).__name__
    for line in str(error).split("\n") if isinstance(error, PreflightError) else [str(error)]:
        echo(f"kdcl: {kind}: {line}", err=True)


def reports_errors(command: Callable[..., None]) -> Callable[..., None]:
    """Make a command print this package's errors, a line each, and exit with their code."""

    @wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        """The command, with its errors reported."""
        try:
            command(*args, **kwargs)
        except KdclError as error:
            echo_error(error)
            sys.exit(error.exit_code)
        except KeyboardInterrupt:
            click.echo("kdcl: interrupted", err=True)
            sys.exit(130)

    return run


class _Modules(click.ParamType[tuple[str, ...]]):
    """Names of modules, and URLs of servers, separated by commas."""

    name = "MODULES"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, ...]:
        """The names."""
        if isinstance(value, tuple):  # the default
            return value
        names = tuple(part.strip() for part in str(value).split(","))
        for name in names:
            is_url = name.startswith(("http://", "https://"))
            if not is_url and not all(part.isidentifier() for part in name.split(".")):
                self.fail(f"{name!r} is not the name of a module, such as my_nets", param, ctx)
        return names


#: Of commands that read a run folder or an export, which may come from someone else. Remembered nowhere.
allows_imports = click.option(
    "--allow-imports",
    type=_Modules(),
    default=(),
    help="Modules outside kdcl_dist whose code the folder may run, such as my_nets,my_data; and URLs of "
    "servers that may get the samples. [default: none]",
)


class _Epoch(click.ParamType[int | str]):
    """An epoch from 1 on, or `best`."""

    name = "EPOCH"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | str:
        """The number, or "best"."""
        if value == "best":
            return "best"
        try:
            number = int(value)
        except ValueError:
            number = 0
        if number < 1:
            self.fail(f"{value!r} is neither best nor the number of an epoch, from 1 on", param, ctx)
        return number


#: Of commands that read a recipe.
takes_overrides = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="PATH=VALUE",
    help="Override a field, such as epochs=3 or students.small.optimizer.lr=0.01; repeatable.",
)


#: Of commands that start runs.
takes_launcher = click.option(
    "--launcher",
    type=click.Choice(["ray", "local"]),
    default="ray",
    show_default=True,
    help="ray: on a Ray cluster, one of this machine if there is none. local: processes of this machine.",
)


#: Of commands that write run folders.
takes_storage = click.option(
    "--storage", default="runs", show_default=True, help="Path or URI of the folder of runs."
)


#: Of commands that read a run folder.
takes_epoch = click.option(
    "--epoch",
    type=_Epoch(),
    help="The checkpoint after this epoch, or best: after each student's best epoch. [default: the latest]",
)


#: Of commands that compute in a process of their own.
takes_device = click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda"]),
    default="auto",
    show_default=True,
    help="Where to compute. auto: on a GPU if there is one.",
)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__)
def kdcl() -> None:
    """Train networks that teach each other: online knowledge distillation by collaborative learning."""
    # A console script, unlike `python -m`, starts without the working directory in its path. Import strings
    # of a recipe must mean the same modules here and in the students' processes.
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)

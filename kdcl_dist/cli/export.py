"""`kdcl export`: a student, or the ensemble, as a folder for other programs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from kdcl_dist.cli.group import allows_imports, echo, kdcl, reports_errors, takes_epoch

if TYPE_CHECKING:
    from kdcl_dist.export.preprocessing import Kind
    from kdcl_dist.run.epochs import Epoch

__all__ = ["export"]

KINDS = ["state_dict", "safetensors", "torch_export", "onnx"]


@kdcl.command()
@click.argument("run")
@click.option("--student", required=True, help="Name of the student, or `ensemble`.")
@click.option("--format", "kind", type=click.Choice(KINDS), default=KINDS[0], show_default=True)
@takes_epoch
@click.option(
    "--last", is_flag=True, help="The checkpoint after the recipe's last epoch; an error if there is none."
)
@click.option("--ema", is_flag=True, help="The averaged weights in place of those of the last step.")
@click.option("--to", help="The folder to write. [default: exports/RUN-STUDENT-FORMAT]")
@allows_imports
@reports_errors
def export(
    run: str,
    student: str,
    kind: Kind,
    epoch: Epoch | None,
    last: bool,
    ema: bool,
    to: str | None,
    allow_imports: tuple[str, ...],
) -> None:
    """Write a student of a RUN folder, or the ensemble of all, as a folder of its own.

    It does not need kdcl, and holds the weights, preprocessing.json and a model card.
    """
    from kdcl_dist.export.writing import export as write_export

    if last and epoch is not None:
        raise click.UsageError("--epoch and --last exclude each other")
    written = write_export(
        run, student, kind, epoch=epoch, last=last, ema=ema, to=to, warn=_warn, allow_imports=allow_imports
    )
    echo(written)


def _warn(text: str) -> None:
    echo(text, err=True)

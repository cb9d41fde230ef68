"""`kdcl evaluate`: the students of a run and their ensemble, tested."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import click

from kdcl_dist.cli.group import allows_imports, echo, kdcl, reports_errors, takes_device, takes_epoch
from kdcl_dist.errors import RunFolderError

if TYPE_CHECKING:
    from kdcl_dist.run.epochs import Epoch

__all__ = ["evaluate"]


class Levels(click.ParamType[list[float]]):
    """`first:last:step`, both ends included, or one number."""

    name = "FIRST:LAST:STEP"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> list[float]:
        """The numbers from first to last."""
        try:
            parts = [float(part) for part in value.split(":")]
            first, last, step = parts if len(parts) > 1 else (parts[0], parts[0], 1.0)
        except ValueError:
            self.fail(f"{value!r} is neither a number nor first:last:step", param, ctx)
        if not (0 <= first <= last < math.inf and 0 < step < math.inf):
            self.fail(f"{value!r}: 0 <= first <= last and step > 0 are needed", param, ctx)
        count = math.floor((last - first) / step + 1e-6) + 1
        return [round(first + number * step, 12) for number in range(count)]


@kdcl.command()
@click.argument("run")
@takes_device
@takes_epoch
@click.option("--noise", type=Levels(), help="Standard deviations of pixel noise; pixels lie in [0, 1].")
@click.option(
    "--repeats",
    type=click.IntRange(1),
    default=10,
    show_default=True,
    help="Draws for each deviation.",
)
@click.option("--data", metavar="SET", help="Test set in place of the recipe's: a path or an import string.")
@click.option("--per-class", is_flag=True, help="Also the accuracy of each class, and frequent mistakes.")
@click.option("--json", "as_json", is_flag=True, help="All results as JSON, with the confusion matrices.")
@allows_imports
@reports_errors
def evaluate(
    run: str,
    device: str,
    epoch: Epoch | None,
    noise: list[float] | None,
    repeats: int,
    data: str | None,
    per_class: bool,
    as_json: bool,
    allow_imports: tuple[str, ...],
) -> None:
    """Test each student of a RUN folder, and the ensemble of all students.

    ECE is the expected calibration error: how far the probability of an answer is from its accuracy.

    With --noise, such as 0:0.15:0.01, the table shows the mean loss by deviation, and RUN/noise.csv holds
    the loss, top1 and top5 of each repeat.
    """
    from rich.console import Console

    from kdcl_dist.cli.evaluation_display import class_table, mistakes_table, scores_table
    from kdcl_dist.evaluation import evaluate as run_evaluation

    if noise is not None:
        if data is not None or per_class or as_json or epoch is not None:
            raise click.UsageError("--noise does not go with --data, --per-class, --json and --epoch")
        _under_noise(run, device, noise, repeats, allow_imports)
        return
    found = run_evaluation(
        run, device=device, warn=_warn, allow_imports=allow_imports, data=data, epoch=epoch
    )
    if as_json:
        click.echo(json.dumps(_numbers(found.as_dict()), indent=2, allow_nan=False))
        return
    tables = [scores_table, *([class_table, mistakes_table] if per_class else [])]
    for table in tables:
        Console().print(table(found))


def _numbers(value: Any) -> Any:
    """A value for JSON, which knows neither NaN nor infinity: None in their places."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _numbers(each) for key, each in value.items()}
    return [_numbers(each) for each in value] if isinstance(value, list | tuple) else value


def _under_noise(
    run: str, device: str, levels: list[float], repeats: int, allow_imports: tuple[str, ...]
) -> None:
    from rich.console import Console
    from rich.progress import Progress

    from kdcl_dist.cli.training_display import noise_table
    from kdcl_dist.evaluation import evaluate_under_noise
    from kdcl_dist.run.storage import Folder

    folder = Folder(run)
    try:
        folder.check_writable()
    except RunFolderError as error:  # before many tests, of which nothing could be kept
        what = f"{folder}/noise.csv cannot be written; copy the run, and test the copy"
        raise RunFolderError(what) from error
    console, rows = Console(), []
    with Progress(console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("noise", total=len(levels) * repeats)
        for deviation, repeat, results in evaluate_under_noise(
            run, levels, repeats, device=device, warn=_warn, allow_imports=allow_imports
        ):
            rows += [(deviation, repeat, name, values) for name, values in results.items()]
            progress.advance(task)
    lines = ["deviation,repeat,student,loss,top1,top5"]
    lines += [f"{d:g},{r},{n},{v['loss']},{v['top1']},{v['top5']}" for d, r, n, v in rows]
    console.print(noise_table(rows, f"test loss under pixel noise, mean of {repeats}"))
    folder.write("noise.csv", "".join(f"{line}\n" for line in lines).encode())
    echo(f"written to {folder}/noise.csv")


def _warn(text: str) -> None:
    echo(text, err=True)

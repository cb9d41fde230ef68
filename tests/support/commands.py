"""Command lines in documents and scripts, held against the real `kdcl`."""

from __future__ import annotations

import contextlib
import json
import re
import shlex
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from kdcl_dist.cli import kdcl
from kdcl_dist.compare.experiment import load_table
from kdcl_dist.config.recipe_file import load_recipe
from kdcl_dist.run import data_wait

_COMMAND = re.compile(rf"(?:^|[ /])(kdcl (?:{'|'.join(kdcl.commands)})\b[^\n#`|>]*)", re.MULTILINE)
_FENCE = re.compile(r"^ *```\w*(?: title=[^\n]*)?\n(.*?)^ *```", re.MULTILINE | re.DOTALL)


def fences(markdown: str) -> list[str]:
    """The blocks of code of a document."""
    return _FENCE.findall(markdown)


def commands_in(script: str) -> list[str]:
    """Every `kdcl ...` of a script or block of code, a line each, without those that show a syntax."""
    joined = re.sub(r"\\\n\s*", " ", script)
    return [line.strip() for line in _COMMAND.findall(joined) if "[--" not in line]


def check(line: str) -> None:
    """Parse a command line as `kdcl` does; recipes and tables that it names are loaded, if they are there."""
    name, *arguments = shlex.split(line)[1:]
    command: click.Command = kdcl.commands[name]
    while isinstance(command, click.Group):
        own = sum(isinstance(parameter, click.Argument) for parameter in command.params)
        name, *arguments = arguments[own:]
        command = command.commands[name]
    with command.make_context(name, arguments) as context:
        recipe, table = context.params.get("recipe"), context.params.get("table")
        if recipe and Path(recipe).is_file():
            load_recipe(recipe, context.params.get("overrides", ()))
        if isinstance(table, Path) and table.is_file():
            load_table(table)


def check_options(line: str) -> None:
    """See that the options of a command line are those of its command, though arguments may be missing."""
    name, *arguments = shlex.split(line)[1:]
    command: click.Command = kdcl.commands[name]
    while isinstance(command, click.Group) and (found := set(arguments) & command.commands.keys()):
        command = command.commands[min(found)]
        arguments = arguments[arguments.index(str(command.name)) + 1 :]
    with contextlib.suppress(click.BadOptionUsage):  # a value is missing too
        command.make_parser(click.Context(command)).parse_args(args=arguments)


def run(*arguments: str) -> Result:
    """Run `kdcl` with arguments in this process."""
    return CliRunner().invoke(kdcl, list(arguments))


def train(recipe: str, folder: Path, *more: str, launcher: str = "local") -> Result:
    """`kdcl train`; the runs lie in `folder`/runs."""
    return run("train", recipe, "--launcher", launcher, "--storage", str(folder / "runs"), *more)


def assert_one_line(result: Result, *words: str) -> None:
    """A user's mistake: exit code 2 and one line with those words."""
    assert result.exit_code == 2, result.output
    lines = [line for line in result.output.splitlines() if line.startswith("kdcl: ")]
    assert len(lines) == 1
    assert lines[0].startswith("kdcl: error: ")
    assert "Traceback" not in result.output
    assert all(word in lines[0] for word in words), lines[0]


def check_dry_run(recipe: str, folder: Path, launcher: str) -> None:
    """Two steps with held-out and validation samples, averaged weights and replicas; nothing is left."""
    more = ("distillation.method=general", "data.val_fraction=0.2", "data.holdout_per_class=2")
    more += ("checkpoint.best=top1", "early_stopping={patience: 1}", "students.a.ema={decay: 0.9}")
    more += ("students.b.replicas=2", "tracking=[csv, {name: wandb}]")
    settings = [word for item in more for word in ("--set", item)]
    command = ["train", recipe, "--launcher", launcher, "--storage", str(folder / "new/runs")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data_wait, "WORTH", -1.0)  # any wait is worth a line
        result = run(*command, *settings, "--dry-run", "2", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["processes"].keys() == {"a", "b/0", "b/1", "coordinator"}
    assert all(usage["memory"] > 1e7 for usage in found["processes"].values())
    assert len(found["steps_s"]) == 2
    assert (found["step_s"], found["epochs"]) == (found["steps_s"][1], 2)
    assert found["checkpoint_bytes"] > 10_000
    assert found["checkpoints"] == 5
    assert found["data_wait"].startswith("waiting for data: a ")
    assert found["run_bytes"] == 5 * found["checkpoint_bytes"] + found["metrics_bytes"]
    assert " step=2/2 " in result.stderr
    assert not (folder / "new").exists()

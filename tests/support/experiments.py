"""Small tables of experiments, and `kdcl compare` on them."""

from __future__ import annotations

from pathlib import Path

import yaml
from click.testing import CliRunner, Result
from cohorts import MakeRecipe

from kdcl_dist.cli import kdcl
from kdcl_dist.config.recipe_file import dump_recipe


def make_table(make_recipe: MakeRecipe, folder: Path) -> Path:
    """Two arms and two seeds of a tiny recipe."""
    (folder / "tiny.yaml").write_text(dump_recipe(make_recipe("epochs=1")))
    return write_table(folder / "table.yaml")


def write_table(path: Path, **changes: object) -> Path:
    """Write the table with some fields changed."""
    arms = [
        {"name": "plain", "recipe": "tiny.yaml", "set": ["distillation.method=none"]},
        {
            "name": "naive",
            "recipe": "tiny.yaml",
            "set": ["distillation.method=naive"],
            "published": {"a": 9.5},
        },
    ]
    fields = {"name": "both", "title": "Both", "seeds": [0, 1], "baseline": "plain", "arms": arms}
    path.write_text(yaml.safe_dump(fields | changes))
    return path


def compare(table: Path, *more: str) -> Result:
    """`kdcl compare` with the local launcher; the runs lie beside the table."""
    arguments = ["compare", str(table), "--launcher", "local", "--storage", str(table.parent / "runs"), *more]
    return CliRunner().invoke(kdcl, arguments)

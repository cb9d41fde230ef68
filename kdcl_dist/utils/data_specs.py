"""What names a data set in a recipe: a path, `hf:FOLDER`, `kdcl:NAME`, or an import string."""

from __future__ import annotations

import os
from pathlib import Path

from kdcl_dist.utils.import_strings import is_import_string

__all__ = ["DEMO", "HUGGING_FACE", "SHIPPED", "data_import", "data_path", "moved"]

#: Before a folder in the on-disk format of Hugging Face's `datasets`.
HUGGING_FACE = "hf:"
#: Before the name of a data set that comes with this package.
SHIPPED = "kdcl:"
#: The folder with those data sets and the recipe of `kdcl demo`.
DEMO = Path(__file__).parents[1] / "demo"


def data_path(spec: str) -> str:
    """The path in the name of a data set; of an import string, the text as it is."""
    if spec.startswith(SHIPPED):
        return str(DEMO / f"{spec.removeprefix(SHIPPED)}.arrow")
    return spec.removeprefix(HUGGING_FACE)


def data_import(spec: str) -> str | None:
    """The import string that a name of a data set is; None for a path, even for one with a colon."""
    is_path = spec.startswith((HUGGING_FACE, SHIPPED)) or not is_import_string(spec) or Path(spec).exists()
    return None if is_path else spec


def moved(spec: str, root: str) -> str:
    """The name of a data set with a path that begins at `root`, where only that exists."""
    path = data_path(spec)
    elsewhere = Path(root) / path
    # Not `Path.exists`, which raises where it may not look; whoever opens the path tells of that in one line.
    if os.path.exists(path) or not os.path.exists(elsewhere):  # noqa: PTH110
        return spec
    return spec[: len(spec) - len(path)] + str(elsewhere)

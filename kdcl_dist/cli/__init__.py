"""The command `kdcl`. Exit codes: 0 success, 1 failure of the run, 2 mistake of the user, 130 interrupt.

Each command has a module, which imports heavy packages only when the command runs. `kdcl --help` so
imports none of them.
"""

from __future__ import annotations

import sys
from typing import NoReturn

from kdcl_dist.cli import (
    cohort,
    compare,
    data,
    demo,
    evaluate,
    export,
    logits,
    models,
    plan,
    predict,
    preflight,
    recipe,
    report,
    serve,
    submit,
    train,
)
from kdcl_dist.cli.group import kdcl

__all__ = [
    "cohort",
    "compare",
    "data",
    "demo",
    "evaluate",
    "export",
    "kdcl",
    "logits",
    "main",
    "models",
    "plan",
    "predict",
    "preflight",
    "recipe",
    "report",
    "serve",
    "submit",
    "train",
]


def main() -> NoReturn:
    """Run the command line and exit with its code."""
    sys.exit(kdcl.main(standalone_mode=True))

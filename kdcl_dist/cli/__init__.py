"""The command `kdcl`. Exit codes: 0 done, 1 the run failed, 2 the user's mistake, 130 interrupted.

One module a command; each imports what it needs when it runs, so that `kdcl --help` waits for nothing.
"""

from __future__ import annotations

import sys
from typing import NoReturn

from kdcl_dist.cli import (
    compare,
    data,
    evaluate,
    export,
    models,
    plan,
    predict,
    preflight,
    recipe,
    report,
    submit,
    train,
)
from kdcl_dist.cli.group import kdcl

__all__ = [
    "compare",
    "data",
    "evaluate",
    "export",
    "kdcl",
    "main",
    "models",
    "plan",
    "predict",
    "preflight",
    "recipe",
    "report",
    "submit",
    "train",
]


def main() -> NoReturn:
    """Run the command line and exit with its code."""
    sys.exit(kdcl.main(standalone_mode=True))

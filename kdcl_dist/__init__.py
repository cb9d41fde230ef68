"""Online knowledge distillation by collaborative learning: networks that teach each other while they train.

Example:

    from kdcl_dist import train

    run = train(students={"small": Small, "large": Large}, data=(train_set, test_set), epochs=10)
    print(run.recipe, run.results)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kdcl_dist.version import __version__

if TYPE_CHECKING:
    from kdcl_dist.api.build import Student
    from kdcl_dist.api.call import train
    from kdcl_dist.api.run import Run
    from kdcl_dist.config.recipe import Recipe
    from kdcl_dist.config.recipe_file import load_recipe
    from kdcl_dist.training import Result

__all__ = ["Recipe", "Result", "Run", "Student", "__version__", "load_recipe", "train"]

#: The module of each public name; none is imported before its first use.
_HOMES = {
    "Recipe": "kdcl_dist.config.recipe",
    "Result": "kdcl_dist.training",
    "Run": "kdcl_dist.api.run",
    "Student": "kdcl_dist.api.build",
    "load_recipe": "kdcl_dist.config.recipe_file",
    "train": "kdcl_dist.api.call",
}


def __getattr__(name: str) -> Any:
    """Import a public name at its first use, so that `kdcl --help` does not wait for torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'kdcl_dist' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)

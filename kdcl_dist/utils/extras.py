"""Packages of an extra of this package, which may be absent."""

from __future__ import annotations

import importlib
from types import ModuleType

__all__ = ["load_extra"]


def load_extra(module: str) -> ModuleType:
    """Import a module of the package that has the name of its extra, such as `timm.optim`.

    Raises:
        ImportError: the package is not installed; the message is one line with the remedy.
    """
    package = module.partition(".")[0]
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(f"{package} is not installed: pip install 'kdcl_dist[{package}]'") from error

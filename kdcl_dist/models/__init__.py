"""Networks: the built-in ones by name, initial weights, transfer and compilation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kdcl_dist.models.registry import build, names

__all__ = ["build", "names"]


def __getattr__(name: str) -> Any:
    """Import the registry, and torch with it, at the first use: `kdcl models` needs neither."""
    if name not in __all__:
        raise AttributeError(f"module 'kdcl_dist.models' has no attribute {name!r}")
    from kdcl_dist.models import registry

    return getattr(registry, name)

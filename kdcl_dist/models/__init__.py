"""Networks by name."""

from kdcl_dist.models.registry import build, names

__all__ = ["build", "names"]

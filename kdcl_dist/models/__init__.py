"""Networks: the built-in ones by name, their cost, initial weights, transfer and compilation."""

from kdcl_dist.models.registry import build, names

__all__ = ["build", "names"]

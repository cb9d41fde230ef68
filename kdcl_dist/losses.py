"""Public name of `kdcl_dist.distillation.losses`."""

from kdcl_dist.distillation.losses import *  # noqa: F403
from kdcl_dist.distillation.losses import __all__ as __all__

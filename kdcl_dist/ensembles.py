"""Public name of `kdcl_dist.distillation.ensembles`."""

from kdcl_dist.distillation.ensembles import *  # noqa: F403
from kdcl_dist.distillation.ensembles import __all__ as __all__

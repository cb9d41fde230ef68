"""Public names of the ensembles and the methods, of `kdcl_dist.distillation`."""

from kdcl_dist.distillation import ensembles as _ensembles
from kdcl_dist.distillation.ensembles import *  # noqa: F403
from kdcl_dist.distillation.methods import Context
from kdcl_dist.distillation.soft_target import log_soft_target

__all__ = [*_ensembles.__all__, "Context", "log_soft_target"]

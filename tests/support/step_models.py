"""Small models of a step for the tests of the planner."""

from __future__ import annotations

import math

from kdcl_dist.planning.proposal import divisors
from kdcl_dist.planning.step_model import Cost, Link, StepModel, StudentCosts

FREE = Link(0.0, math.inf)


def costs(seconds: float, threads: int = 1, gradient_bytes: int = 0, batch: int = 64) -> StudentCosts:
    return StudentCosts({batch: Cost(0.0, seconds)}, threads, gradient_bytes, divisors(batch, 64))


def step_model(
    *students: StudentCosts, link: Link = FREE, cores: float = math.inf, ensemble_s: float = 0.0
) -> StepModel:
    return StepModel(64, 10, students, link, ensemble_s, True, cores)

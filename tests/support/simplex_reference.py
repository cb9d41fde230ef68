"""The smallest value of a convex function over the simplex, by SciPy's general minimiser."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.optimize import minimize

__all__ = ["smallest_over_simplex"]


def smallest_over_simplex(
    value: Callable[[np.ndarray], float], gradient: Callable[[np.ndarray], np.ndarray], size: int
) -> float:
    """The minimum over weights (size,) that are not negative and have the sum 1."""
    found = minimize(
        value,
        np.full(size, 1 / size),
        jac=gradient,
        method="SLSQP",
        bounds=[(0, 1)] * size,
        constraints={"type": "eq", "fun": lambda a: a.sum() - 1, "jac": np.ones_like},
        options={"ftol": 1e-13, "maxiter": 500},
    )
    return float(found.fun)

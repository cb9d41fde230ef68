"""Log-sum-exp over the weights of two students: one variable, so plain Newton within a bracket, compiled.

Shapes: C classes.
"""

from __future__ import annotations

from kdcl_dist.distillation.kernels import add, compiled, copy, dot, exponentials, largest, product
from kdcl_dist.distillation.newton import Problem, aim_of, noise_of

__all__ = ["minimise_of_two"]

#: Limit of steps; halving alone takes 60.
MAX_STEPS = 200


@compiled
def minimise_of_two(problem: Problem, base: int) -> None:
    """Write the weights, (1 - x, x) or (x, 1 - x), that minimise f(x) = log sum_c exp(base_C + x * apart_C).

    They are the root of f's slope on [0, 1], with a KKT gap as `minimise`.

    Args:
        problem: of two students.
        base: the student of `base_C`; the other's weight is x.
    """
    base_C, apart_C = problem.base_C, problem.apart_SC[1 - base]
    mixed_C, power_C, aim = problem.mixed_C, problem.power_C, aim_of(noise_of(problem))
    low, high, x, steepness = 0.0, 1.0, 0.5, 1e300
    for _ in range(MAX_STEPS):
        copy(mixed_C, base_C)
        add(mixed_C, x, apart_C)
        total = exponentials(mixed_C, largest(mixed_C), 1.0, power_C)
        product(mixed_C, power_C, apart_C)
        slope = dot(power_C, apart_C) / total
        if slope * (x if slope > 0 else x - 1) <= aim:
            break
        if slope > 0:
            high = x
        else:
            low = x
        curvature = dot(mixed_C, apart_C) / total - slope * slope
        if abs(slope) > 0.5 * steepness:
            # Where Newton did not halve the slope, f has a kink: halve the bracket.
            x, steepness = (low + high) / 2, 1e300
        else:
            x, steepness = min(max(x - slope / max(curvature, 1e-100), low), high), abs(slope)
    problem.weights_S[base], problem.weights_S[1 - base] = 1 - x, x

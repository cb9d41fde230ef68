"""Compiled loops over one sample's logits, in float64.

`fused` lets sums be reordered, so that the processor adds several numbers at a time. In which order depends
on the length alone, and not on the sample's position in the batch or the number of threads.

Shapes: C classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeAlias, TypeVar

import numba
from llvmlite import ir
from numba.extending import intrinsic

__all__ = [
    "Vector",
    "add",
    "compiled",
    "copy",
    "dot",
    "exponentials",
    "fused",
    "largest",
    "normalise",
    "product",
    "smallest",
]

Function = TypeVar("Function", bound=Callable[..., Any])
#: NumPy's array: numba has no types for checkers.
Vector: TypeAlias = Any

LOG2_E = math.log2(math.e)
#: Taylor's coefficients of 2^r: for |r| <= 1/2 the remainder is below the rounding of float64.
POWERS = tuple(math.log(2) ** k / math.factorial(k) for k in range(14))
#: A whole number added to it stands in the lowest bits of the sum.
SHIFTER = 1.5 * 2.0**52
#: Powers of 2 below it count as it, so that the exponent's bits do not overflow.
LEAST_POWER = -1000.0


def compiled(function: Function) -> Function:
    """Compile a function at its first call, into the functions that call it."""
    made: Function = numba.njit(nogil=True, forceinline=True, error_model="numpy")(function)
    return made


def fused(function: Function) -> Function:
    """Compile a function whose sums may be reordered."""
    options = {"fastmath": {"reassoc", "contract", "nsz", "arcp"}, "error_model": "numpy"}
    made: Function = numba.njit(nogil=True, forceinline=True, **options)(function)
    return made


def _operation(generate: Callable[..., Any]) -> Any:
    """A function of two numbers of float64 that LLVM's instructions form."""

    def typed(typing_context: Any, x: Any, y: Any) -> Any:
        """The types of the function, and its instructions."""
        signature = numba.float64(numba.float64, numba.float64)
        return signature, lambda context, builder, signature, arguments: generate(builder, *arguments)

    return intrinsic(typed)


@_operation
def scaled(builder: Any, value: Any, whole: Any) -> Any:
    """value * 2^whole, for a whole number that leaves the result a normal number: its exponent's bits."""
    bits = ir.IntType(64)
    raised = builder.bitcast(builder.fadd(whole, ir.Constant(whole.type, SHIFTER)), bits)
    exponent = builder.shl(raised, ir.Constant(bits, 52))
    return builder.bitcast(builder.add(builder.bitcast(value, bits), exponent), value.type)


@_operation
def larger(builder: Any, x: Any, y: Any) -> Any:
    """The larger number, or NaN; unlike Python's `max`, the processor's vectors do it."""
    kind = ir.FunctionType(x.type, [x.type, x.type])
    return builder.call(builder.module.declare_intrinsic("llvm.maximum", [x.type], kind), [x, y])


@fused
def exponentials(x_C: Vector, peak: float, tau: float, out_C: Vector) -> float:
    """Write exp((x - peak) / tau), for x <= peak, and return the sum.

    Powers of 2 by a polynomial, with the whole part of the exponent added to the bits of the result: unlike
    calls of a library, such a loop uses the processor's vectors.
    """
    factor, total = LOG2_E / tau, 0.0
    for c in range(len(x_C)):
        power = max((x_C[c] - peak) * factor, LEAST_POWER)
        whole = math.floor(power + 0.5)
        rest = power - whole
        value = POWERS[13] * rest + POWERS[12]
        value = ((value * rest + POWERS[11]) * rest + POWERS[10]) * rest + POWERS[9]
        value = ((value * rest + POWERS[8]) * rest + POWERS[7]) * rest + POWERS[6]
        value = ((value * rest + POWERS[5]) * rest + POWERS[4]) * rest + POWERS[3]
        value = ((value * rest + POWERS[2]) * rest + POWERS[1]) * rest + POWERS[0]
        out_C[c] = scaled(value, float(whole))
        total += out_C[c]
    return total


@fused
def dot(x_C: Vector, y_C: Vector) -> float:
    """The inner product."""
    total = 0.0
    for c in range(len(x_C)):
        total += x_C[c] * y_C[c]
    return total


@fused
def copy(out_C: Vector, x_C: Vector) -> None:
    """Write a vector."""
    for c in range(len(x_C)):
        out_C[c] = x_C[c]


@fused
def product(out_C: Vector, x_C: Vector, y_C: Vector) -> None:
    """Write the products of the elements."""
    for c in range(len(x_C)):
        out_C[c] = x_C[c] * y_C[c]


@fused
def add(out_C: Vector, factor: float, x_C: Vector) -> None:
    """Add a multiple of a vector, in place."""
    for c in range(len(x_C)):
        out_C[c] += factor * x_C[c]


@fused
def largest(x_C: Vector) -> float:
    """The largest element."""
    found: float = x_C[0]
    for c in range(len(x_C)):
        found = larger(found, x_C[c])
    return found


@fused
def smallest(x_C: Vector) -> float:
    """The smallest element."""
    found: float = -x_C[0]
    for c in range(len(x_C)):
        found = larger(found, -x_C[c])
    return -found


@fused
def normalise(x_K: Vector, size: int) -> None:
    """Divide the first elements by their sum, in place."""
    total = 0.0
    for i in range(size):
        total += x_K[i]
    for i in range(size):
        x_K[i] /= total

"""Axes with their ticks, and numbers as text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["MINUS", "Scale", "choose_scale", "number"]

MINUS = "−"


@dataclass(frozen=True)
class Scale:
    """An axis from `low` to `high`, linear or logarithmic, with its ticks in increasing order."""

    low: float
    high: float
    ticks: tuple[float, ...]
    log: bool = False

    def position(self, value: float) -> float:
        """The position of a value on the axis: 0 at the lower end, 1 at the upper."""
        low, high = self.low, self.high
        if self.log:
            low, high, value = math.log10(low), math.log10(high), math.log10(value)
        return (value - low) / (high - low)

    def labels(self) -> list[str]:
        """The ticks as text, with as many digits as distinguish them."""
        if self.log:
            return [f"{tick:g}".replace("-", MINUS) for tick in self.ticks]
        step = self.ticks[1] - self.ticks[0] if len(self.ticks) > 1 else abs(self.ticks[0])
        if not 1e-4 < step < 1e6:
            return [f"{tick:.2e}".replace("-", MINUS) if tick else "0" for tick in self.ticks]
        # A step such as 2.5 needs one decimal more than its power of ten.
        digits = max(0, -math.floor(math.log10(step) + 1e-9))
        digits += abs(round(step, digits) - step) > step / 100
        return [f"{tick:.{digits}f}".replace("-", MINUS) for tick in self.ticks]


def choose_scale(
    values: Sequence[float], *, whole: bool = False, tight: bool = False, log: bool = False, wanted: int = 5
) -> Scale:
    """A scale that contains all values.

    Args:
        values: finite numbers, at least one.
        whole: whether ticks lie at whole numbers only.
        tight: whether the axis ends at the extreme values instead of at the next ticks.
        log: whether the axis is logarithmic if all values are positive and span more than a factor of 30.
        wanted: approximate number of ticks.
    """
    low, high = min(values), max(values)
    if log and low > 0 and high / low > 30:
        return _logarithmic(low, high)
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        if whole:
            return Scale(low - 1, high + 1, (low,))
        margin = abs(high) / 10 or 1.0
        low, high = low - margin, high + margin
    step = _step((high - low) / wanted)
    if whole:
        step = max(1.0, math.ceil(step))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    ticks = tuple(float(f"{i * step:.12g}") for i in range(first, last + 1))
    if not tight:
        return Scale(ticks[0], ticks[-1], ticks)
    inner = tuple(tick for tick in ticks if low <= tick <= high)
    return Scale(low, high, inner)


def number(value: float, digits: int) -> str:
    """A number with `digits` decimals and a true minus sign; a dash for a value that is not finite."""
    return f"{value:.{digits}f}".replace("-", MINUS) if math.isfinite(value) else "–"


def _logarithmic(low: float, high: float) -> Scale:
    first, last = math.floor(math.log10(low) + 1e-9), math.ceil(math.log10(high) - 1e-9)
    stride = max(1, math.ceil((last - first) / 6))
    ticks = tuple(10.0**power for power in range(first, last + 1, stride))
    return Scale(10.0**first, 10.0**last, ticks, log=True)


def _step(rough: float) -> float:
    """The smallest of 1, 2, 2.5, 5, 10 times a power of ten that is at least `rough`."""
    power = 10.0 ** math.floor(math.log10(rough))
    return next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough * (1 - 1e-9))

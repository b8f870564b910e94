"""From figures to places on a chart, and the round figures that its axis names."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

WIDE = 30.0
"""How many times the smallest of positive figures the largest is, where an axis becomes logarithmic."""


@dataclass(frozen=True)
class Scale:
    """One axis.

    Attributes:
        low: The figure at its beginning.
        high: The figure at its end.
        start: Where it begins, in the chart's units.
        end: Where it ends.
        ticks: Figures to name.
        log: Whether equal distances are equal ratios.
    """

    low: float
    high: float
    start: float
    end: float
    ticks: tuple[float, ...]
    log: bool = False

    def __call__(self, value: float) -> float:
        """Give the place of a figure; what lies outside stops at the end."""
        low, high = self._turn(self.low), self._turn(self.high)
        share = (self._turn(value) - low) / (high - low)
        return round(self.start + min(max(share, 0.0), 1.0) * (self.end - self.start), 2)

    def _turn(self, value: float) -> float:
        return math.log10(max(value, self.low)) if self.log else value


def scale(values: Iterable[float], start: float, end: float, *, exact: bool = False, log: bool = False) -> Scale:
    """Make the axis that shows all of some figures.

    Args:
        values: Finite figures.
        start: Where the axis begins.
        end: Where it ends.
        exact: Whether it begins and ends with the figures themselves, not with round ones.
        log: Whether it may be logarithmic, where the figures are positive and `WIDE` apart.

    >>> scale([0.2, 9.7], 0, 100).ticks
    (0.0, 5.0, 10.0)
    >>> scale([1, 12], 0, 100, exact=True).ticks
    (5.0, 10.0)
    >>> scale([0.02, 7.0], 0, 100, log=True).ticks
    (0.01, 0.1, 1.0, 10.0)
    """
    found = list(values) or [0.0, 1.0]
    low, high = min(found), max(found)
    if log and low >= sys.float_info.min and high / low > WIDE:  # of smaller ones no power of ten is left
        first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
        stride = max(1, (last - first) // 4)
        return Scale(
            10.0**first, 10.0**last, start, end, _finite(10.0**n for n in range(first, last + 1, stride)), True
        )
    step = _step(high - low, max(abs(low), abs(high)))
    first, last = math.floor(low / step), math.ceil(high / step)
    last = max(last, first + 1)
    ticks = _finite(float(f"{place * step:.12g}") for place in range(first, last + 1))
    if exact and high > low:
        return Scale(low, high, start, end, tuple(value for value in ticks if low <= value <= high))
    return Scale(ticks[0], ticks[-1], start, end, ticks)


def _finite(values: Iterable[float]) -> tuple[float, ...]:
    return tuple(value for value in values if math.isfinite(value))


def _step(span: float, size: float) -> float:
    """Choose 1, 2 or 5 times a power of ten, so that about four steps cover a span."""
    wanted = max(span / 4, size * 1e-9, 1e-300)
    power = 10.0 ** math.floor(math.log10(wanted))
    return next((factor * power for factor in (1, 2, 5, 10) if factor * power >= wanted * 0.999), 10 * power)

"""The range whose grid keeps most of the distribution's information: the least Kullback-Leibler divergence.

After Migacz 2017 ("8-bit inference with TensorRT"): what lies outside a range counts as its outermost bin in the
distribution that is wanted, but is absent from the one that rounding gives, whose levels spread over the bins that they
hold. Zero and the ends of the range are no part of that spreading, because every grid holds them exactly.
Without this, a spike there, as ReLU and ReLU6 make, costs most where no value is clipped, and the rule cuts it off.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from modelpack.numerics.quantization.calibration.histogram import SIDE

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from modelpack.numerics.quantization.calibration.histogram import Histogram

LEVELS = 256
"""Levels of a grid of 8 bits."""

_TRIED = 128
"""Most ranges that are tried."""


def nearest(histogram: Histogram, levels: int = LEVELS) -> tuple[float, float]:
    """Choose how far from zero a range reaches on either side.

    Args:
        histogram: The values, at least one.
        levels: Levels of the grid that will span the range.
    """
    used = np.flatnonzero(histogram.counts) - SIDE
    reaches = np.unique(np.abs(used))
    reaches = reaches[reaches >= min(levels // 2, reaches[-1])][::-1]
    tried = reaches[np.unique(np.linspace(0, reaches.size - 1, _TRIED).astype(np.int64))].tolist()
    inside = [used[np.abs(used) <= reach] for reach in tried]
    ends = [(min(int(part[0]), 0), max(int(part[-1]), 0)) for part in inside]
    first, last = ends[int(np.argmin([divergence(histogram.counts, *pair, levels) for pair in ends]))]
    return max(histogram.low, (first - 1) * histogram.width), min(histogram.high, (last + 1) * histogram.width)


def divergence(counts: NDArray[np.int64], first: int, last: int, levels: int = LEVELS) -> float:
    """Give the divergence between all values and what a grid over some bins keeps of them, in nats.

    Args:
        counts: A histogram's counts.
        first: Lowest bin of the range, at most 0.
        last: Highest bin of the range, at least 0.
        levels: Levels of the grid.
    """
    held = counts[SIDE + first : SIDE + last + 1].astype(np.float64)
    wanted = held.copy()
    wanted[0] += counts[: SIDE + first].sum()
    wanted[-1] += counts[SIDE + last + 1 :].sum()
    exact = np.zeros(held.size, bool)
    exact[[0, -first, -1]] = True
    level = np.arange(held.size) * levels // held.size
    spread = (held > 0) & ~exact
    masses, shares = np.bincount(level[spread], held[spread], levels), np.bincount(level[spread], minlength=levels)
    got = np.where(spread, (masses / np.maximum(shares, 1))[level], held)
    some = wanted > 0
    if not got[some].all():
        return float("inf")
    p, q = wanted[some] / wanted.sum(), got[some] / got.sum()
    return float((p * np.log(p / q)).sum())

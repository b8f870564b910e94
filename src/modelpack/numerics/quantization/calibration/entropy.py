"""The range whose grid keeps most of the distribution's information: the least Kullback-Leibler divergence.

After Migacz 2017 ("8-bit inference with TensorRT"): what lies outside a range counts as its outermost bin in the
distribution that is wanted, but is absent from the one that rounding gives, whose levels spread over the bins that they
hold. Spikes are no part of that spreading: many equal values stay equal when they are rounded, and every grid holds
zero and the ends of its range exactly. Were they spread, they would cost most where no value is clipped, and the rule
would clip: the zeros of ReLU, what ReLU6 cuts off, and what each channel makes of a picture's plain background. Ranges
that clip most values are not tried: where all fall into the outermost bin, as they do where none is near zero, that is
all there is to keep.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from modelpack.numerics.quantization.calibration.histogram import SIDE

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from modelpack.numerics.quantization.calibration.histogram import Histogram

LEVELS = 256
"""Levels of a grid of 8 bits."""

_TRIED = 128
"""Most ranges that are tried."""

_INSIDE = 0.5
"""Share of the values, zeros aside, that a range holds at least."""

_AROUND = 16
"""Bins on either side that a spike stands out from: as many as one of 256 levels over the whole histogram holds."""

_SPIKE = 4
"""How many times the median of the bins around it a spike holds."""


def nearest(histogram: Histogram, levels: int = LEVELS) -> tuple[float, float]:
    """Choose how far from zero a range reaches on either side.

    Args:
        histogram: The values, at least one.
        levels: Levels of the grid that will span the range.
    """
    used = np.flatnonzero(histogram.counts) - SIDE
    reaches = np.unique(np.abs(used))
    reaches = reaches[reaches >= min(max(levels // 2, _shortest(histogram.counts)), reaches[-1])][::-1]
    tried = reaches[np.unique(np.linspace(0, reaches.size - 1, _TRIED).astype(np.int64))].tolist()
    inside = [used[np.abs(used) <= reach] for reach in tried]
    ends = [(min(int(part[0]), 0), max(int(part[-1]), 0)) for part in inside]
    alone = spikes(histogram.counts)
    first, last = ends[int(np.argmin([divergence(histogram.counts, alone, *pair, levels) for pair in ends]))]
    return max(histogram.low, (first - 1) * histogram.width), min(histogram.high, (last + 1) * histogram.width)


def _shortest(counts: NDArray[np.int64]) -> int:
    """Give the fewest bins on either side of zero that hold enough values."""
    sides = counts[SIDE + 1 :] + counts[:SIDE][::-1]
    return 1 + int(np.searchsorted(np.cumsum(sides), _INSIDE * sides.sum()))


def spikes(counts: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Say which bins hold far more values than those around them do, as equal values make."""
    around = sliding_window_view(np.pad(counts, _AROUND), 2 * _AROUND + 1)
    return np.asarray(counts > _SPIKE * np.maximum(np.median(around, axis=1), 1))


def divergence(
    counts: NDArray[np.int64], alone: NDArray[np.bool_], first: int, last: int, levels: int = LEVELS
) -> float:
    """Give the divergence between all values and what a grid over some bins keeps of them, in nats.

    Args:
        counts: A histogram's counts.
        alone: Bins whose values do not spread over others.
        first: Lowest bin of the range, at most 0.
        last: Highest bin of the range, at least 0.
        levels: Levels of the grid.
    """
    held = counts[SIDE + first : SIDE + last + 1].astype(np.float64)
    wanted = held.copy()
    wanted[0] += counts[: SIDE + first].sum()
    wanted[-1] += counts[SIDE + last + 1 :].sum()
    exact = alone[SIDE + first : SIDE + last + 1].copy()
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

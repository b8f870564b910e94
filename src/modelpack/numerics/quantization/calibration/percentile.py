"""The range that holds a share of the values, the rest cut evenly at both ends."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from modelpack.numerics.quantization.calibration.histogram import SIDE

if TYPE_CHECKING:
    from modelpack.numerics.quantization.calibration.histogram import Histogram


def between(histogram: Histogram, share: float) -> tuple[float, float]:
    """Give the bounds, to one bin's width, that hold `share` per cent of the values.

    Args:
        histogram: The values, at least one.
        share: More than 50, at most 100.
    """
    rising = np.cumsum(histogram.counts)
    cut = histogram.total * (1.0 - share / 100.0) / 2.0
    first = int(np.searchsorted(rising, cut, side="right")) - SIDE
    last = int(np.searchsorted(rising, histogram.total - cut, side="left")) - SIDE
    # Bins count outwards from bin 0, which reaches one width to either side.
    low = (first if first > 0 else first - 1) * histogram.width
    high = (last + 1 if last >= 0 else last) * histogram.width
    return max(low, histogram.low), min(high, histogram.high)

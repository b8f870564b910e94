"""The range with the least squared error: what rounding loses inside it plus what clipping loses outside.

Rounding to steps of width s loses s²/12 on average, wherever values are dense beside the steps; zero loses nothing,
for every grid holds it. (The trade-off that Banner et al. 2019, arXiv 1810.05723, solve for known distributions,
here over the values themselves.)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from modelpack.numerics.quantization.calibration.histogram import Histogram

STEPS = 255
"""Steps of a grid of 8 bits."""

_ENDS = 256
"""Most ends of ranges that are tried on each side."""


def least(histogram: Histogram, steps: int = STEPS) -> tuple[float, float]:
    """Choose the range with the least expected squared error among all pairs of ends on either side of zero.

    Args:
        histogram: The values, at least one.
        steps: Steps of the grid that will span the range.
    """
    lows, highs = 0.0 - _ends(-histogram.low), _ends(histogram.high)
    below = _clipped(-histogram.centers, histogram.counts, -lows)
    above = _clipped(histogram.centers, histogram.counts, highs)
    width = (highs[None, :] - lows[:, None]) / steps
    rounded = int(histogram.counts.sum() - histogram.counts[histogram.counts.size // 2])
    error = rounded * width**2 / 12.0 + below[:, None] + above[None, :]
    row, column = np.unravel_index(int(np.argmin(error)), error.shape)
    return float(lows[row]), float(highs[column])


def _ends(reach: float) -> NDArray[np.float64]:
    """List ends of ranges on one side of zero, the outermost value first."""
    return np.linspace(reach, 0.0, _ENDS, endpoint=False) if reach > 0 else np.zeros(1)


def _clipped(places: NDArray[np.float64], counts: NDArray[np.int64], ends: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sum the squared distances of values beyond each end."""
    beyond = np.maximum(places[None, :] - ends[:, None], 0.0)
    return np.asarray(beyond**2 @ counts.astype(np.float64))

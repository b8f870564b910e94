"""Histograms that depend on nothing but the values: bins as wide as a power of two, merged exactly as ranges grow.

A value `x` belongs to bin ``trunc(x / 2**exponent)``. Scaling by a power of two is exact in float32, and since
``trunc(trunc(x / w) / 2) == trunc(x / (2 * w))``, two neighbouring bins become one without looking at the values again.
The final width follows from the largest magnitude alone. So counts are the same for any order, batching or chunking,
and on any device. Truncation makes bin 0 twice as wide as the others; it holds the zeros.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from numpy.typing import NDArray

SIDE = 2047
"""Bins on either side of bin 0; a tensor's largest magnitude lies in one of the outer halves."""

FINEST = -100
"""Smallest exponent: its inverse is still a float32."""

_ROW = 2 * (SIDE + 1)
_LANES = 4
_CHUNK = {"cpu": 2**17, "cuda": 2**23}


@dataclass(frozen=True)
class Histogram:
    """Counts of a tensor's values.

    Attributes:
        exponent: Bins are ``2**exponent`` wide.
        counts: int64, shape ``(2 * SIDE + 1,)``; entry ``SIDE + k`` counts the values with ``trunc(x / width) == k``.
        low: The smallest value.
        high: The largest value.
    """

    exponent: int
    counts: NDArray[np.int64]
    low: float
    high: float

    @property
    def width(self) -> float:
        """Width of a bin."""
        return math.ldexp(1.0, self.exponent)

    @property
    def total(self) -> int:
        """How many values were counted."""
        return int(self.counts.sum())

    @property
    def centers(self) -> NDArray[np.float64]:
        """Middle of each bin, shape ``(2 * SIDE + 1,)``; 0 for bin 0, and never outside the values seen."""
        places = np.arange(-SIDE, SIDE + 1, dtype=np.float64)
        middle: NDArray[np.float64] = (places + 0.5 * np.sign(places)) * self.width
        return np.clip(middle, min(self.low, 0.0), max(self.high, 0.0))


def exponent_for(magnitude: float) -> int:
    """Give the exponent of the narrowest bins that reach a magnitude.

    >>> exponent_for(6.0), exponent_for(8.0), exponent_for(0.0)
    (-8, -7, -100)
    """
    return max(math.frexp(magnitude)[1] - 11, FINEST) if magnitude else FINEST


class Workspace:
    """Memory in which values become bins; small enough to stay in a processor's cache, and shared by all tallies."""

    def __init__(self, device: torch.device) -> None:
        self.size = _CHUNK[device.type]
        self.scaled = torch.empty(self.size, dtype=torch.float32, device=device)
        self.bins = torch.empty(self.size, dtype=torch.int16, device=device)
        # Runs of zeros would wait for one counter: neighbours count in turn in different lanes.
        turns = torch.arange(self.size, device=device) % _LANES
        self.offsets = (turns * _ROW + SIDE + 1).to(torch.int16)


class Tally:
    """Counts the values of one tensor, piece after piece."""

    def __init__(self, workspace: Workspace, *, positive: bool = False) -> None:
        """Begin with nothing; `positive` promises that no value is below 0, whose smallest is then taken to be 0."""
        self.workspace, self.positive = workspace, positive
        self.low, self.high = math.inf, -math.inf
        self.exponent = FINEST
        self._lanes = torch.zeros(_LANES * _ROW, dtype=torch.int64, device=workspace.bins.device)

    def add(self, values: torch.Tensor) -> bool:
        """Count values, float32 of any shape, on the workspace's device.

        Returns:
            Whether all are finite; otherwise none was counted.
        """
        flat = values.reshape(-1)
        if not flat.numel():
            return True
        low, high = (0.0, float(flat.amax())) if self.positive else torch.stack(torch.aminmax(flat)).tolist()
        if not (math.isfinite(low) and math.isfinite(high)):
            return False
        self.low, self.high = min(self.low, low), max(self.high, high)
        self._widen(exponent_for(max(-low, high)))
        scale, space = math.ldexp(1.0, -self.exponent), self.workspace
        for start in range(0, flat.numel(), space.size):
            part = flat[start : start + space.size]
            count = part.numel()
            bins = space.bins[:count].copy_(torch.mul(part, scale, out=space.scaled[:count]))
            bins += space.offsets[:count]
            self._lanes += torch.bincount(bins, minlength=_LANES * _ROW)
        return True

    def _widen(self, exponent: int) -> None:
        """Merge bins until they are `2**exponent` wide."""
        steps = exponent - self.exponent
        if steps <= 0:
            return
        places = torch.arange(_ROW, device=self._lanes.device) - (SIDE + 1)
        merged = torch.sign(places) * (places.abs() >> min(steps, 12)) + SIDE + 1
        rows = self._lanes.view(_LANES, _ROW)
        self._lanes = torch.zeros_like(rows).index_add_(1, merged, rows).view(-1)
        self.exponent = exponent

    def result(self) -> Histogram:
        """Give what was counted so far; of no values, a range that holds zero alone."""
        counts = self._lanes.view(_LANES, _ROW).sum(0)[1:].cpu().numpy()
        low, high = (self.low, self.high) if self.low <= self.high else (0.0, 0.0)
        return Histogram(self.exponent, counts, low, high)

"""The range that the values of a tensor take, or that a grid shall span."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Extent:
    """From the smallest value to the largest."""

    low: float
    high: float

"""Half-quadratic quantization: grids for weights with outliers, found without data in a few closed-form steps.

After HQQ (Badri & Shaji 2023, "Half-Quadratic Quantization of Large Machine Learning Models"). The error is measured by
the ``p``-norm with ``p < 1``, which lets a few large errors pass so that most become small. An auxiliary error ``e``
splits that into two problems with simple solutions, taken in turn while ``beta`` draws them together: a shrinkage of
the present error, and a fit of the grid to the weights less that error. Here the fit is of scale and zero both, by
least squares, since the kernels want whole zeros.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from modelpack.numerics.quantization.weights import blocks

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Reals = NDArray[np.float64]

NORM = 0.7
"""``p``."""

ROUNDS = 10

BETA = 10.0
"""How strongly both problems are drawn together at first, for weights scaled to a standard deviation of 1."""

GROWTH = 1.01
"""By what it grows each round."""


def objective(cells: Reals, grid: blocks.Grid) -> Reals:
    """Give each block's error in the ``p``-norm, to the power ``p``, ``(n, b)``."""
    return np.asarray((np.abs(grid.real(grid.codes(cells)) - cells) ** NORM).sum(axis=2), dtype=np.float64)


def shrunk(values: Reals, beta: float) -> Reals:
    """Give the proximal point of the ``p``-norm (generalized soft thresholding): small values vanish, large ones stay.

    >>> shrunk(np.array([0.01, -4.0]), 10.0).round(2).tolist()
    [0.0, -3.95]
    """
    size = np.maximum(np.abs(values), 1e-12)
    return np.sign(values) * np.maximum(size - NORM / beta * size ** (NORM - 1.0), 0.0)


def fitted(cells: Reals, bits: int) -> blocks.Grid:
    """Find each block's grid.

    Args:
        cells: Weights, ``(n, b, s)``.
        bits: Bits of a code.

    Returns:
        Grids whose `objective` is nowhere larger than that of the grids that span the blocks.
    """
    deviation = np.maximum(cells.std(axis=2, keepdims=True), 1e-30)
    best = grid = blocks.spanning(cells, bits)
    least, beta = objective(cells, best), BETA
    for _ in range(ROUNDS):
        codes = grid.codes(cells)
        error = shrunk((cells - grid.real(codes)) / deviation, beta) * deviation
        grid = _refitted(cells - error, codes, grid)
        found = objective(cells, grid)
        falls = found < least
        best = blocks.Grid(np.where(falls, grid.scales, best.scales), np.where(falls, grid.zeros, best.zeros), bits)
        least, beta = np.where(falls, found, least), beta * GROWTH
    return best


def _refitted(wanted: Reals, codes: Reals, grid: blocks.Grid) -> blocks.Grid:
    """Fit scale and zero of each block to wanted values for given codes, by least squares."""
    centred = codes - codes.mean(axis=2, keepdims=True)
    spread = np.square(centred).sum(axis=2)
    slope = (centred * wanted).sum(axis=2) / np.where(spread > 0, spread, 1.0)
    good = (spread > 0) & (slope > 0)
    scales = blocks.storable(np.where(good, slope, grid.scales))
    zeros = np.clip(np.rint(codes.mean(axis=2) - wanted.mean(axis=2) / scales), 0, grid.top)
    return blocks.Grid(scales, np.where(good, zeros, grid.zeros), grid.bits)


def rounded(weights: NDArray[np.floating], bits: int, size: int) -> blocks.Blocks:
    """Round weights ``(n, k)`` to the nearest codes of these grids."""
    cells = blocks.cut(weights, size)
    grid = fitted(cells, bits)
    return blocks.Blocks.of(grid.codes(cells), grid, weights.shape[1])

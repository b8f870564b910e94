"""Rounding in blocks by what the layer's inputs make of each error.

After GPTQ (Frantar et al. 2022, arXiv 2210.17323): the walk of `correction.rounding` over the inputs, largest first,
on grids that are fixed beforehand, block by block, by the squared error weighted with each input's power.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from modelpack.numerics.quantization.correction import rounding
from modelpack.numerics.quantization.weights import blocks

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Reals = NDArray[np.float64]

DAMPING = 0.05
"""Share of the mean diagonal that is added to the moment's diagonal."""


def error(made: blocks.Blocks, weights: NDArray[np.floating], moment: Reals) -> Reals:
    """Give each output's squared error, ``(n,)``, summed over the rows of inputs behind the moment ``(k, k)``."""
    gap = made.real().astype(np.float64) - weights
    return np.asarray(((gap @ moment) * gap).sum(axis=1), dtype=np.float64)


def rounded(weights: NDArray[np.floating], moment: Reals, bits: int, size: int) -> blocks.Blocks:
    """Round weights so that the outputs move little.

    Args:
        weights: ``(n, k)``.
        moment: Second moment of the inputs, ``(k, k)``: the sum of ``x xᵀ`` over rows.
        bits: Bits of a code.
        size: Weights of a block.

    Returns:
        Blocks; no output's error under the damped moment is larger than with rounding to nearest.
    """
    firm = rounding.damped(moment[None], DAMPING)
    columns = weights.shape[1]
    cells = blocks.cut(weights, size)
    power = blocks.cut(np.diagonal(firm[0])[None], size)[0]
    grid = blocks.fitted(cells, bits, power)
    made = blocks.Blocks.of(_walked(weights, firm, grid, size), grid, columns)
    plain = blocks.nearest(weights, bits, size)
    worse = error(made, weights, firm[0]) > error(plain, weights, firm[0])
    kept = worse[:, None]
    scales, zeros = (np.where(kept, getattr(plain.grid, name), getattr(grid, name)) for name in ("scales", "zeros"))
    codes = np.where(kept[:, :, None], plain.codes, made.codes)
    return blocks.Blocks(blocks.Grid(scales, zeros, bits), codes, columns)


def _walked(weights: NDArray[np.floating], firm: Reals, grid: blocks.Grid, size: int) -> Reals:
    """Choose codes ``(n, b, s)`` on a grid by the walk over inputs."""
    columns = weights.shape[1]
    scales, zeros = (np.repeat(item, size, axis=1)[None, :, :columns] for item in (grid.scales, grid.zeros))
    real = np.asarray(weights, dtype=np.float64)[None]
    steps = rounding.rounded(real, scales, firm, (-zeros, grid.top - zeros))
    return blocks.cut((steps + zeros)[0], size)

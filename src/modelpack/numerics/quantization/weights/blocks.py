"""Weights as small integers in blocks: ``real = scale * (code - zero)``, with one scale and one zero for each block.

A block is a run of weights that one output multiplies with neighbouring inputs. Codes are unsigned, and zero is one of
them, so that a weight of exactly 0 stays 0.

Shapes: ``n`` outputs, ``k`` inputs, ``b = ceil(k / s)`` blocks of ``s`` weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Reals = NDArray[np.float64]

NARROWEST = 0.6
"""The smallest share of a block's range that `fitted` tries."""

TRIES = 21
"""How many shares it tries."""


@dataclass(frozen=True)
class Grid:
    """One scale and zero per block.

    Attributes:
        scales: Float64 that float32 holds, and float16 too where its range allows, ``(n, b)``.
        zeros: Whole numbers as float64, 0 to `top`, ``(n, b)``.
        bits: Bits of a code.
    """

    scales: Reals
    zeros: Reals
    bits: int

    @property
    def top(self) -> int:
        """The largest code."""
        return (1 << self.bits) - 1

    def compact(self) -> NDArray[np.floating]:
        """Give the scales in float16 where that holds them exactly, else in float32."""
        wide = self.scales.astype(np.float32)
        with np.errstate(over="ignore"):
            half = self.scales.astype(np.float16)
        return half if np.array_equal(half.astype(np.float32), wide) else wide

    def codes(self, cells: Reals) -> Reals:
        """Round cells ``(n, b, s)`` to the nearest codes, as float64."""
        return np.clip(np.rint(cells / self.scales[..., None]) + self.zeros[..., None], 0, self.top)

    def real(self, codes: Reals) -> Reals:
        """Give what codes ``(n, b, s)`` stand for."""
        return np.asarray((codes - self.zeros[..., None]) * self.scales[..., None], dtype=np.float64)


@dataclass(frozen=True)
class Blocks:
    """Rounded weights.

    Attributes:
        grid: Their scales and zeros.
        codes: uint8, ``(n, b, s)``; what fills up the last block stands for 0.
        columns: ``k``.
    """

    grid: Grid
    codes: NDArray[np.uint8]
    columns: int

    @classmethod
    def of(cls, codes: Reals, grid: Grid, columns: int) -> Blocks:
        """Take codes ``(n, b, s)``; what they say behind the last column does not matter."""
        filled = np.array(codes)
        tail = filled.shape[1] * filled.shape[2] - columns
        if tail:
            filled[:, -1, -tail:] = grid.zeros[:, -1:]
        return cls(grid, filled.astype(np.uint8), columns)

    def real(self) -> NDArray[np.float32]:
        """Give the weights that they stand for, ``(n, k)``."""
        return joined(self.grid.real(self.codes.astype(np.float64)), self.columns).astype(np.float32)


def cut(weights: NDArray[np.floating], size: int) -> Reals:
    """Cut weights ``(n, k)`` into cells ``(n, b, s)``; zeros fill up the last block."""
    rows, columns = weights.shape
    filled = np.zeros((rows, -(-columns // size) * size))
    filled[:, :columns] = weights
    return filled.reshape(rows, -1, size)


def joined(cells: Reals, columns: int) -> Reals:
    """Undo `cut`."""
    return cells.reshape(len(cells), -1)[:, :columns]


def spanning(cells: Reals, bits: int, share: float = 1.0) -> Grid:
    """Spread the codes over each block's range, or over a `share` of it; zero is always inside."""
    top = 2**bits - 1
    low, high = share * np.minimum(cells.min(axis=2), 0.0), share * np.maximum(cells.max(axis=2), 0.0)
    scales = storable((high - low) / top)
    return Grid(scales, np.clip(np.rint(-low / scales), 0, top), bits)


def storable(scales: Reals) -> Reals:
    """Round positive scales to float16 where all of them are normal numbers there, else to float32; 0 becomes 1."""
    scales = np.where(scales > 0, scales, 1.0)
    half = np.finfo(np.float16)
    if half.smallest_normal <= scales.min() and scales.max() <= half.max:
        return scales.astype(np.float16).astype(np.float64)
    least = float(np.finfo(np.float32).smallest_normal)
    return np.maximum(scales, least).astype(np.float32).astype(np.float64)


def fitted(cells: Reals, bits: int, importance: Reals | None = None) -> Grid:
    """Narrow each block's range where its squared error falls: large weights are cut so that the others are finer.

    Args:
        cells: The weights, ``(n, b, s)``.
        bits: Bits of a code.
        importance: What each input's error counts, ``(b, s)``; all the same when None.
    """
    best = spanning(cells, bits)
    least = loss(cells, best, importance)
    for share in np.linspace(1.0, NARROWEST, TRIES)[1:]:
        grid = spanning(cells, bits, float(share))
        error = loss(cells, grid, importance)
        falls = error < least
        best = Grid(np.where(falls, grid.scales, best.scales), np.where(falls, grid.zeros, best.zeros), bits)
        least = np.where(falls, error, least)
    return best


def loss(cells: Reals, grid: Grid, importance: Reals | None = None) -> Reals:
    """Sum the squared errors of each block when its cells are rounded to the nearest codes, ``(n, b)``."""
    error = np.square(grid.real(grid.codes(cells)) - cells)
    return np.asarray((error if importance is None else error * importance).sum(axis=2), dtype=np.float64)


def nearest(weights: NDArray[np.floating], bits: int, size: int) -> Blocks:
    """Round weights ``(n, k)`` to the nearest codes of grids that span each block."""
    cells = cut(weights, size)
    grid = spanning(cells, bits)
    return Blocks.of(grid.codes(cells), grid, weights.shape[1])


def pack(codes: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Put 4-bit codes two into a byte along the last axis, the first into the low half; 8-bit codes stay.

    >>> pack(np.array([1, 2, 3], np.uint8), 4).tolist()
    [33, 3]
    """
    if bits == 8:
        return codes
    even = codes if codes.shape[-1] % 2 == 0 else np.pad(codes, [(0, 0)] * (codes.ndim - 1) + [(0, 1)])
    return np.asarray(even[..., 0::2] | even[..., 1::2] << 4, dtype=np.uint8)


def unpack(packed: NDArray[np.uint8], bits: int, count: int) -> NDArray[np.uint8]:
    """Undo `pack`; `count` is the length of the last axis.

    >>> unpack(np.array([33, 3], np.uint8), 4, 3).tolist()
    [1, 2, 3]
    """
    if bits == 8:
        return packed
    halves = np.stack([packed & 15, packed >> 4], axis=-1)
    return halves.reshape(*packed.shape[:-1], -1)[..., :count].astype(np.uint8)

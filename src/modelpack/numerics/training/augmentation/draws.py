"""Random numbers that belong to rows: they follow from a row's bytes, wherever in which batch it is."""

from __future__ import annotations

import hashlib
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

_STEP = np.uint64(0x9E3779B97F4A7C15)
_MIX = ((np.uint64(30), np.uint64(0xBF58476D1CE4E5B9)), (np.uint64(27), np.uint64(0x94D049BB133111EB)))
_BITS = 53

_LOOKED_AT = 16_384
"""Bytes of a row that its numbers follow from, about."""


@dataclass(frozen=True)
class Draws:
    """A stream of numbers for every row.

    Attributes:
        keys: ``[rows]``, 64 bits each.
    """

    keys: NDArray[np.uint64]

    def uniform(self, what: str, low: float = 0.0, high: float = 1.0, count: int = 1) -> NDArray[np.float64]:
        """Draw numbers from an interval.

        Args:
            what: Names the draw: another name gives other numbers.
            low: Its lower end, included.
            high: Its upper end, excluded.
            count: How many a row.

        Returns:
            Shape ``[rows, count]``.
        """
        places = np.arange(1, count + 1, dtype=np.uint64) + (np.uint64(zlib.crc32(what.encode())) << np.uint64(32))
        bits = _mixed(self.keys[:, None] + places * _STEP)
        found: NDArray[np.float64] = low + (high - low) * (
            (bits >> np.uint64(64 - _BITS)).astype(np.float64) / 2**_BITS
        )
        return found


def _mixed(state: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Turn states of a counter into bits that look random: SplitMix64 (Steele, Lea and Flood 2014)."""
    for shift, factor in _MIX:
        state = (state ^ (state >> shift)) * factor
    return state ^ (state >> np.uint64(31))


def for_rows(columns: Sequence[NDArray[np.generic]], seed: int, variant: int) -> Draws:
    """Give rows their numbers.

    Of large rows only bytes spread evenly are looked at: rows alike in these get the same numbers, which harms nobody.

    Args:
        columns: What the rows are, each with as many rows.
        seed: Other seeds give other numbers.
        variant: So do other variants of the same row.
    """
    prefix = hashlib.blake2b(f"{seed} {variant}".encode(), digest_size=8)
    flat = [np.ascontiguousarray(column).reshape(len(column), -1).view(np.uint8) for column in columns]
    flat = [np.ascontiguousarray(column[:, :: max(1, column.shape[1] // _LOOKED_AT)]) for column in flat]
    keys = np.empty(len(flat[0]), np.uint64)
    for row in range(len(keys)):
        name = prefix.copy()
        for column in flat:
            name.update(column[row])
        keys[row] = int.from_bytes(name.digest(), "little")
    return Draws(keys)

"""How many units to take from each group so that a given fraction of a cost stays."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from modelpack.numerics.pruning.groups import Counts


@dataclass
class Search:
    """A search over how many units each group loses.

    Attributes:
        keys: By group: the units' keys, ascending; those with the lowest keys go first.
        allowed: By group: how many units it may lose, ascending from 0.
        estimate: Fraction of the cost that stays for given counts of removed units.
    """

    keys: Sequence[Sequence[float]]
    allowed: Sequence[Sequence[int]]
    estimate: Callable[[Counts], float]
    _known: dict[Counts, float] = field(default_factory=dict)

    def run(self, target: float, tolerance: float) -> Counts:
        """Find counts whose fraction is within `tolerance` (relative) of `target`, or as near as can be."""
        order = sorted(
            (key, group, unit)
            for group, values in enumerate(self.keys)
            for unit, key in enumerate(values)
            if math.isfinite(key)
        )
        low, high = 0, len(order)
        while low < high:  # the smallest number of units whose removal reaches the target
            middle = (low + high) // 2
            if self._fraction(self._counts(order, middle)) <= target:
                high = middle
            else:
                low = middle + 1
        candidates = [self._counts(order, place) for place in {low, max(0, low - 1)}]
        best = min(candidates, key=lambda counts: (abs(self._fraction(counts) - target), counts))
        return self._finish(best, target, tolerance)

    def _finish(self, counts: Counts, target: float, tolerance: float) -> Counts:
        """Take or give back one step of one group after another while that comes nearer to the target."""
        while abs(self._fraction(counts) - target) > tolerance * target:
            step = 1 if self._fraction(counts) > target else -1
            moves = [self._moved(counts, group, step) for group in range(len(self.keys))]
            near = min(
                (move for move in moves if move is not None),
                key=lambda move: (abs(self._fraction(move) - target), move),
                default=counts,
            )
            if abs(self._fraction(near) - target) >= abs(self._fraction(counts) - target):
                break
            counts = near
        return counts

    def _moved(self, counts: Counts, group: int, direction: int) -> Counts | None:
        allowed = self.allowed[group]
        place = allowed.index(counts[group]) + direction
        if not 0 <= place < len(allowed):
            return None
        return (*counts[:group], allowed[place], *counts[group + 1 :])

    def _counts(self, order: Sequence[tuple[float, int, int]], removed: int) -> Counts:
        wanted = [0] * len(self.keys)
        for _, group, _unit in order[:removed]:
            wanted[group] += 1
        return tuple(
            max(count for count in allowed if count <= want) for allowed, want in zip(self.allowed, wanted, strict=True)
        )

    def _fraction(self, counts: Counts) -> float:
        if counts not in self._known:
            self._known[counts] = self.estimate(counts)
        return self._known[counts]

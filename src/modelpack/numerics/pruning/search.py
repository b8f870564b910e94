"""How many units to take from each group so that a given fraction of a cost stays."""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

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
        best = min(candidates, key=lambda counts: self._rank(counts, target))
        best = self._walked(best, target, tolerance / 4, self._steps)
        return self._walked(best, target, tolerance, self._exchanges)

    def bent(self, counts: Counts, group: int, options: Sequence[int], target: float) -> Counts:
        """Let one group lose another number of units, of some ascending ones: that which comes nearest to `target`."""

        def losing(count: int) -> Counts:
            return (*counts[:group], count, *counts[group + 1 :])

        place = bisect_left(options, True, key=lambda count: self._fraction(losing(count)) <= target)
        near = {options[min(place, len(options) - 1)], options[max(0, place - 1)]}
        return min(map(losing, near), key=lambda counts: self._rank(counts, target))

    def off(self, counts: Counts, target: float) -> float:
        """Tell how far counts are from `target`, relative to it."""
        return abs(self._fraction(counts) - target) / target

    def _walked(
        self, counts: Counts, target: float, tolerance: float, moves: Callable[[Counts, int], Iterator[Counts | None]]
    ) -> Counts:
        """Move as long as that comes nearer to the target, until it is near enough."""
        while self.off(counts, target) > tolerance:
            direction = 1 if self._fraction(counts) > target else -1
            there = (move for move in moves(counts, direction) if move is not None)
            near = min(there, key=lambda move: self._rank(move, target), default=counts)
            if self.off(near, target) >= self.off(counts, target):
                break
            counts = near
        return counts

    def _steps(self, counts: Counts, direction: int) -> Iterator[Counts | None]:
        """Let one group lose a step more, or less."""
        return (self._moved(counts, group, direction) for group in range(len(counts)))

    def _exchanges(self, counts: Counts, direction: int) -> Iterator[Counts | None]:
        """Let one group lose a step more, and another one less; or one alone, which may come nearer again by now."""
        yield from self._steps(counts, direction)
        for more in self._steps(counts, 1):
            if more is not None:
                yield from (move for move in self._steps(more, -1) if move != counts)

    def _rank(self, counts: Counts, target: float) -> tuple[float, Counts]:
        return self.off(counts, target), counts

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

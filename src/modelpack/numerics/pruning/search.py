"""How many units to take from each group so that a given fraction of the multiply-accumulates stays."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from modelpack.numerics.pruning.groups import Group

_LEAST_SHARE = 0.05
"""Share of every group that always stays: a layer that loses all but one channel is a hole, not a layer."""

Counts = tuple[int, ...]


@dataclass
class Search:
    """A search over how many units each group loses.

    Attributes:
        groups: What may be removed.
        scores: By group: the units' importance, ascending.
        measure: Fraction of multiply-accumulates that stays for given counts of removed units.
        round_to: Channels that stay in a group are a multiple of this.
    """

    groups: Sequence[Group]
    scores: Sequence[Sequence[float]]
    measure: Callable[[Counts], float]
    round_to: int
    _known: dict[Counts, float] = field(default_factory=dict)

    def run(self, target: float, tolerance: float) -> Counts:
        """Find counts whose fraction is within `tolerance` (relative) of `target`, or as near as can be."""
        order = sorted(
            (score, group, unit)
            for group, values in enumerate(self.scores)
            for unit, score in enumerate(values)
            if math.isfinite(score)
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

    def fraction(self, counts: Counts) -> float:
        """Give the fraction that stays for these counts."""
        return self._fraction(counts)

    def _finish(self, counts: Counts, target: float, tolerance: float) -> Counts:
        """Take or give back one step of one group after another while that comes nearer to the target."""
        while abs(self._fraction(counts) - target) > tolerance * target:
            step = 1 if self._fraction(counts) > target else -1
            moves = [self._moved(counts, group, step) for group in range(len(self.groups))]
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
        allowed = self._allowed(group)
        place = allowed.index(counts[group]) + direction
        if not 0 <= place < len(allowed):
            return None
        return (*counts[:group], allowed[place], *counts[group + 1 :])

    def _counts(self, order: Sequence[tuple[float, int, int]], removed: int) -> Counts:
        wanted = [0] * len(self.groups)
        for _, group, _unit in order[:removed]:
            wanted[group] += 1
        return tuple(max(count for count in self._allowed(group) if count <= want) for group, want in enumerate(wanted))

    def _allowed(self, number: int) -> list[int]:
        """List how many units a group may lose."""
        group = self.groups[number]
        finite = sum(math.isfinite(score) for score in self.scores[number])
        multiple = 1 if group.heads else self.round_to
        least = max(1, math.ceil(group.units * _LEAST_SHARE))
        return [
            lost
            for lost in range(min(group.units - least, finite) + 1)
            if lost == 0 or (group.units - lost) * group.unit_width % multiple == 0
        ]

    def _fraction(self, counts: Counts) -> float:
        if counts not in self._known:
            self._known[counts] = self.measure(counts)
        return self._known[counts]

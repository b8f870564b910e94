"""How many units each group may lose, so that what stays fills the blocks that kernels compute."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from modelpack.numerics.pruning.groups import Group

LEAST_SHARE = 0.05
"""Share of every group that always stays: a layer that loses all but one channel is a hole, not a layer."""

_CHOICES = 8
"""Widths that a group can choose from at least: a coarser grid takes channels for their place, not for their worth."""


@dataclass(frozen=True)
class Rounding:
    """What the channels that stay are a multiple of.

    Attributes:
        width: That number.
        adapts: Halve it for groups too narrow for it, and for all where the target could not be met otherwise.
    """

    width: int = 1
    adapts: bool = False

    def steps(self, groups: Sequence[Group]) -> tuple[int, ...]:
        """Give the multiple by group; attention heads are whole already."""
        return tuple(1 if group.heads else self._step(group.units * group.unit_width) for group in groups)

    def _step(self, channels: int) -> int:
        step = self.width
        while self.adapts and step > 1 and channels < step * _CHOICES:
            step //= 2
        return step

    def finer(self) -> Rounding | None:
        """Give the next finer rounding; None where there is none."""
        return Rounding(self.width // 2, True) if self.adapts and self.width > 1 else None


def welcome_share(keep: float) -> float:
    """Give the share of its units that a group keeps unless the target needs more: half of its part.

    If all groups shrank alike, a cost in proportion to two widths would leave each the square root of what stays. A
    group far narrower than that is a bottleneck, which no training widens again.

    Args:
        keep: Fraction of the cost that stays.
    """
    return max(LEAST_SHARE, math.sqrt(keep) / 2)


def allowed(group: Group, step: int, removable: int, least: float) -> tuple[int, ...]:
    """List how many units a group may lose, ascending from 0.

    Args:
        group: The group.
        step: Channels that stay are a multiple of this, unless all stay.
        removable: Units that may go at most.
        least: Share of the units that stays at least; one does in any case.
    """
    most = min(group.units - max(1, math.ceil(group.units * least)), removable)
    fits = (lost for lost in range(1, most + 1) if (group.units - lost) * group.unit_width % step == 0)
    return (0, *fits)

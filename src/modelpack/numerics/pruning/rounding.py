"""How many units each group may lose, so that what stays fills the blocks that kernels compute."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from modelpack.numerics.pruning.groups import Group

BLOCK = 16
"""Channels that the widest kernels compute at once; a rest of fewer takes as long as a whole block.

Sources: onnxruntime's convolutions on blocked channels (``onnxruntime/core/mlas/lib/platform.cpp``: blocks of 16 with
AVX-512 and in builds for NEON, of 8 with AVX), and cuDNN's tensor cores, which take multiples of 8 half-precision
channels (NVIDIA, Deep Learning Performance: Convolutional Layers). What fills blocks of 16 fills those of 8, so that
one number serves all of them and a model becomes the same wherever it is pruned. CUDA and NEON were not run.
"""

LEAST_SHARE = 0.05
"""Share of every group that always stays: a layer that loses all but one channel is a hole, not a layer."""

_CHOICES = (1, 2, 4, 8)
"""Widths that a group can choose from at least, at one level of rounding after the other."""


@dataclass(frozen=True)
class Rounding:
    """What the channels that stay are a multiple of.

    Attributes:
        width: That number.
        adapts: Whether it becomes finer where the target cannot be met otherwise: in narrow groups first.
    """

    width: int = 1
    adapts: bool = False

    def levels(self, groups: Sequence[Group]) -> list[tuple[int, ...]]:
        """List what channels may be a multiple of, by group, the coarsest first; attention heads are whole already."""
        found = [self._level(groups, 1)]
        if self.adapts:
            found += [self._level(groups, choices) for choices in _CHOICES[1:]]
            while max(found[-1]) > 1:
                found.append(tuple(max(1, step // 2) for step in found[-1]))
        return list(dict.fromkeys(found))

    def _level(self, groups: Sequence[Group], choices: int) -> tuple[int, ...]:
        return tuple(1 if group.heads else self._step(group.units * group.unit_width, choices) for group in groups)

    def _step(self, channels: int, choices: int) -> int:
        step = self.width
        while self.adapts and step > 1 and channels < step * choices:
            step //= 2
        return step


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

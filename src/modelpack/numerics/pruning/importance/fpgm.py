"""Importance ``fpgm``: how far a channel is from the others, for one near the middle can be replaced by them.

He et al., Filter Pruning via Geometric Median, CVPR 2019, who look at one layer's filters; here a block's vector holds
the weights of all coupled layers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from modelpack.numerics.pruning.importance import channels

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor, nn

    from modelpack.numerics.pruning.groups import Group


def fpgm(module: nn.Module, groups: Iterable[Group]) -> list[list[float]]:
    """Score blocks by the sum of their distances to all blocks of the group, relative to the group's mean."""
    return [channels.relative(_distances(module, group).sum(1)) for group in groups]


def _distances(module: nn.Module, group: Group) -> Tensor:
    squared = torch.zeros(len(group.blocks), len(group.blocks), dtype=torch.float64)
    for part in channels.slices(module, group, channels.WHOLE):
        rows = part.rows(part.weight.detach())
        # Exact differences: the difference of squares loses the small distances that decide.
        squared += torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist").square().cpu()
    return squared.sqrt()

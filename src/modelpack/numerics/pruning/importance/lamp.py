"""Importance ``lamp``: a channel's share in the energy of its equals and betters, which can be compared between layers.

Lee et al., Layer-adaptive Sparsity for the Magnitude-based Pruning, ICLR 2021, who score single weights within a layer;
here a block of channels takes the place of the weight, and a group that of the layer. Channels are few and much alike,
so that the plain share says little but how many are left, and would leave all groups equally many; times the number of
blocks, it leaves groups whose blocks are all alike the same share.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from modelpack.numerics.pruning.importance.l2 import energies

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor, nn

    from modelpack.numerics.pruning.groups import Group


def lamp(module: nn.Module, groups: Iterable[Group]) -> list[list[float]]:
    """Score blocks by their squared norm over the sum of those no smaller, times the number of blocks."""
    return [(_shares(energies(module, group)) * len(group.blocks)).tolist() for group in groups]


def _shares(values: Tensor) -> Tensor:
    order = torch.argsort(values, stable=True)
    ascending = values[order]
    betters = ascending.flip(0).cumsum(0).flip(0)
    shares = torch.empty_like(values)
    shares[order] = ascending / betters.clamp_min(torch.finfo(values.dtype).tiny)
    return shares

"""Importance ``l1``: the sum of a channel's absolute weights (Li et al., Pruning Filters, ICLR 2017)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from modelpack.numerics.pruning.importance import channels

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import nn

    from modelpack.numerics.pruning.groups import Group


def l1(module: nn.Module, groups: Iterable[Group]) -> list[list[float]]:
    """Score blocks by the absolute weights of all coupled layers, relative to the group's mean."""
    return [
        channels.relative(channels.by_block(module, group, channels.WHOLE, lambda part: part.weight.detach().abs()))
        for group in groups
    ]

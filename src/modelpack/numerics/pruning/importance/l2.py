"""Importance ``l2``: the norm of a channel's weights over all coupled layers (Fang et al., DepGraph, CVPR 2023)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from modelpack.numerics.pruning.importance import channels

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor, nn

    from modelpack.numerics.pruning.groups import Group


def l2(module: nn.Module, groups: Iterable[Group]) -> list[list[float]]:
    """Score blocks by the norm of all weights that go with them, relative to the group's mean."""
    return [channels.relative(energies(module, group).sqrt()) for group in groups]


def energies(module: nn.Module, group: Group) -> Tensor:
    """Sum the squares of all weights that go with each block."""
    return channels.by_block(module, group, channels.WHOLE, lambda part: part.weight.detach().double().square())

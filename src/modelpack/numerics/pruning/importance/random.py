"""Importance ``random``: none at all, the control that every other one must beat."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterable

    from modelpack.numerics.pruning.groups import Group


def random(groups: Iterable[Group], seed: int) -> list[list[float]]:
    """Score blocks by chance, the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(len(group.blocks), generator=generator, dtype=torch.float64).tolist() for group in groups]

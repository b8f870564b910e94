"""Where zeros may be: anywhere, or so that ``N`` of each ``M`` consecutive inputs stay (Mishra et al. 2021)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Pattern:
    """How many of how many consecutive inputs stay.

    Attributes:
        keep: ``N``, at least 1.
        of: ``M``, more than ``N``.
    """

    keep: int
    of: int

    def __str__(self) -> str:
        return f"{self.keep}:{self.of}"

    @property
    def ratio(self) -> float:
        """Fraction of zeros."""
        return 1 - self.keep / self.of


def smallest(scores: Tensor, count: int) -> Tensor:
    """Mark exactly `count` of the lowest scores along the last axis; of equal ones the first.

    Args:
        scores: ``(..., k)``, without NaN.
        count: 0 ≤ count ≤ k.

    Returns:
        Booleans in the same shape.
    """
    if count == 0:
        return torch.zeros_like(scores, dtype=torch.bool)
    limit = scores.kthvalue(count, dim=-1, keepdim=True).values
    below, equal = scores < limit, scores == limit
    room = count - below.sum(-1, keepdim=True)
    return below | (equal & (equal.cumsum(-1) <= room))


def chosen(scores: Tensor, ratio: float, pattern: Pattern | None) -> Tensor:
    """Mark what becomes zero.

    Args:
        scores: ``(..., k)``; each row is judged by itself.
        ratio: Fraction of each row, where there is no pattern.
        pattern: Of consecutive scores; ``k`` is a multiple of its length.
    """
    if pattern is None:
        return smallest(scores, round(ratio * scores.shape[-1]))
    blocks = scores.reshape(*scores.shape[:-1], -1, pattern.of)
    return smallest(blocks, pattern.of - pattern.keep).flatten(-2)

"""The smallest weights become zero (Han et al. 2015, arXiv 1506.02626)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from modelpack.numerics.sparsity.pattern import Pattern, chosen, smallest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor


def zeros(weight: Tensor, ratio: float, pattern: Pattern | None) -> Tensor:
    """Mark the smallest weights of one layer, ``(g, n, k)``; with a pattern those of each block of inputs."""
    if pattern is not None:
        return chosen(weight.abs(), ratio, pattern)
    return smallest(weight.abs().flatten(), round(ratio * weight.numel())).view_as(weight)


def zeros_of_all(weights: Sequence[Tensor], ratio: float) -> list[Tensor]:
    """Mark the smallest weights of all layers together, so that layers of small weights lose more of them."""
    flat = torch.cat([weight.abs().flatten() for weight in weights])
    marked = torch.split(smallest(flat, round(ratio * len(flat))), [weight.numel() for weight in weights])
    return [part.view_as(weight) for part, weight in zip(marked, weights, strict=True)]

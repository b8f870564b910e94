"""Distances between what a student gives and what its teacher gives."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from modelpack.errors import StageError
from modelpack.numerics.distillation.distances import divergence
from modelpack.numerics.distillation.distances.angle import cosine_distance
from modelpack.numerics.distillation.distances.decoupled import decoupled
from modelpack.numerics.distillation.distances.relative import relative_error

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Distance", "axis_of", "cosine_distance", "decoupled", "divergence", "places", "relative_error"]

Distance = Literal["kl", "dkd", "mse", "cosine"]


def axis_of(value: Tensor) -> int:
    """Find the dimension of an output that holds classes or features: images keep it second, all others last."""
    return 1 if value.ndim > 3 else value.ndim - 1


def places(value: Tensor, where: str) -> Tensor:
    """Bring values ``[…, width]`` to ``[places, width]``.

    Raises:
        StageError: When they have no width.
    """
    if value.ndim < 2:
        raise StageError(
            f"the output '{where}' has the shape {list(value.shape)}: no dimension holds classes or features",
            then="compare it by distance: mse",
        )
    return value.flatten(0, -2)

"""The angle between vectors, for embeddings that are compared by their direction."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch.nn import functional

from modelpack.numerics.distillation import averages

if TYPE_CHECKING:
    from torch import Tensor


def cosine_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Give one less the mean cosine of vectors ``[places, width]``."""
    return averages.mean(1 - functional.cosine_similarity(student, teacher, dim=1))

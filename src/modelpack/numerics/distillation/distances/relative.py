"""Squared error in units of the teacher's own spread."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from modelpack.numerics.distillation import averages
from modelpack.numerics.training import sharing

if TYPE_CHECKING:
    from torch import Tensor


def relative_error(student: Tensor, teacher: Tensor) -> Tensor:
    """Give the mean squared error over the variance of the teacher's values: 1 for a student that knows their mean."""
    spread = sharing.variance(teacher).clamp_min(1e-8) if sharing.held(teacher) > 1 else torch.ones_like(teacher).mean()
    return averages.mean((student - teacher).square()) / spread

"""What must stay true of a student's weights while it learns."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from modelpack.numerics import zeros
from modelpack.numerics.training import crew

if TYPE_CHECKING:
    from torch import nn

    from modelpack.artifact import Artifact
    from modelpack.numerics.training.lesson import Constraint


def zeros_kept(student: nn.Module, source: Artifact, prefix: str = "") -> Constraint | None:
    """Keep the zeros of a sparse model exactly zero; None for a dense one.

    Args:
        student: Before it learns.
        source: The model that it was loaded from.
        prefix: Where the names of that model's weights start in the student.
    """
    sparsity = zeros.read(source)
    weights = dict(student.named_parameters())
    names = [prefix + name for name in sparsity.layers] if sparsity is not None else []
    zero = {name: weights[name].detach() == 0 for name in names if name in weights}

    @torch.no_grad()
    def clear(trained: nn.Module) -> None:
        now = dict(trained.named_parameters())
        for name, mask in zero.items():
            crew.part(now[name]).masked_fill_(crew.part(crew.dealt_like(mask, now[name])), 0)

    return clear if zero else None

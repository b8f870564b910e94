"""How much a change of the weights changes the outputs, where there is no truth to ask."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor


def sensitivity(outputs: Mapping[str, Tensor], directions: torch.Generator) -> Tensor:
    """Project the outputs on a random direction, each output in units of its spread.

    The squared gradient of this, averaged over directions, is the squared change of the outputs: the second-order
    term of self-distillation, whose own gradient vanishes at the unpruned model.
    """
    parts = []
    for value in outputs.values():
        if value.is_floating_point():
            noise = torch.randn(value.shape, generator=directions).to(value.device)
            spread = value.detach().float().std(correction=0).clamp_min(1e-6)
            parts.append((value.float() * noise).sum() / spread)
    return torch.stack(parts).sum()

"""The weights that stay are fitted anew to what the layer gave before, by least squares on what it reads.

Each output is a problem of its own, all have the same matrix but for its zeros; conjugate gradients (Hestenes & Stiefel
1952), preconditioned by the diagonal, solve them side by side with one product a step, and no step makes any worse.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

STEPS = 64
"""At most."""

ENOUGH = 1e-3
"""It ends when a step takes less than this share off the error."""


def error(weight: Tensor, made: Tensor, moment: Tensor) -> Tensor:
    """Give the squared error of each output, ``(g, n)``, summed over the rows behind the moment."""
    gap = made - weight
    return ((gap @ moment) * gap).sum(-1)


def refitted(weight: Tensor, made: Tensor, moment: Tensor, damping: float) -> Tensor:
    """Fit the weights that are not zero.

    Args:
        weight: What they were, ``(g, n, k)``, float64.
        made: The same with zeros.
        moment: Second moment of the inputs, ``(g, k, k)``, float64.
        damping: Share of the mean diagonal that is added to the moment's diagonal.

    Returns:
        Weights with the same zeros; no output's error under the damped moment is larger than before.
    """
    diagonal = moment.diagonal(dim1=-2, dim2=-1)
    extra = damping * diagonal.mean(-1, keepdim=True).expand_as(diagonal)
    firm, scale = moment + torch.diag_embed(extra), (diagonal + extra)[:, None, :].clamp_min(1e-300)
    stays = made != 0
    found = made.clone()
    residual = ((weight - made) @ firm) * stays
    ready = residual / scale
    step, power = ready, (residual * ready).sum(-1, keepdim=True)
    left = float(error(weight, made, firm).sum())
    for _ in range(STEPS):
        pushed = (step @ firm) * stays
        length = _ratio(power, (step * pushed).sum(-1, keepdim=True))
        found += length * step
        residual = residual - length * pushed
        taken = float((length * power).sum())
        left -= taken
        if taken <= ENOUGH * left:
            break
        ready = residual / scale
        before, power = power, (residual * ready).sum(-1, keepdim=True)
        step = ready + _ratio(power, before) * step
    return found


def _ratio(one: Tensor, other: Tensor) -> Tensor:
    """Divide; 0 where there is nothing left to divide."""
    return torch.where(other > 0, one / torch.where(other > 0, other, torch.ones_like(other)), torch.zeros_like(one))

"""Importance ``taylor``: what ignoring a channel would do to the loss, to first order.

Molchanov et al., Importance Estimation for Neural Network Pruning, CVPR 2019: the squared sum of weight times gradient
over all that reads the channel, averaged over small batches.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from modelpack.numerics.pruning.importance import channels, gradients

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor, nn

    from modelpack.numerics.pruning.groups import Group
    from modelpack.numerics.pruning.importance.gradients import Evidence


def taylor(module: nn.Module, groups: Sequence[Group], evidence: Evidence) -> list[list[float]]:
    """Score blocks by the mean squared slope of the loss along their contribution.

    Args:
        module: In evaluation mode, on the batches' device.
        groups: What may be removed.
        evidence: Rows, and the loss whose change is judged.

    Raises:
        StageError: When there are no rows, or a loss or gradient is not finite.
    """
    readers = [channels.slices(module, group, channels.READERS) for group in groups]
    totals = [torch.zeros(len(group.blocks), dtype=torch.float64, device=_device(module)) for group in groups]

    def look() -> None:
        for total, parts in zip(totals, readers, strict=True):
            total.add_(_slopes(total, parts).square())

    count = gradients.each(module, evidence, look)
    return [gradients.finite(total / count, group) for total, group in zip(totals, groups, strict=True)]


def _slopes(like: Tensor, parts: Sequence[channels.Slice]) -> Tensor:
    """Sum weight times gradient over all that reads a block; a weight without gradient has no say."""
    slopes = torch.zeros_like(like)
    for part in parts:
        if part.weight.grad is not None:
            slopes += part.summed(part.weight.detach() * part.weight.grad)
    return slopes


def _device(module: nn.Module) -> torch.device:
    return next(module.parameters()).device

"""Importance ``fisher``: what removing a channel's weights would do to the loss, to second order.

Half the sum of squared weight times the diagonal of the Hessian (LeCun et al., Optimal Brain Damage, 1989), the latter
estimated by squared gradients (empirical Fisher information; Theis et al., Faster Gaze Prediction, 2018).
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


def fisher(module: nn.Module, groups: Sequence[Group], evidence: Evidence) -> list[list[float]]:
    """Score blocks by half the sum of squared weight times mean squared gradient, over all weights that go with them.

    Args:
        module: In evaluation mode, on the batches' device.
        groups: What may be removed.
        evidence: Rows, and the loss whose change is judged.

    Raises:
        StageError: When there are no rows, or a loss or gradient is not finite.
    """
    squares = {
        part.weight: torch.zeros_like(part.weight.detach())
        for group in groups
        for part in channels.slices(module, group, channels.WHOLE)
    }

    def look() -> None:
        for weight, total in squares.items():
            if weight.grad is not None:
                total.addcmul_(weight.grad, weight.grad)

    count = gradients.each(module, evidence, look)

    def measure(part: channels.Slice) -> Tensor:
        return part.weight.detach().double().square() * squares[part.weight] / (2 * count)

    return [gradients.finite(channels.by_block(module, group, channels.WHOLE, measure), group) for group in groups]

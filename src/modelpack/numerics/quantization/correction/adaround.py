"""AdaRound: whether each weight is rounded up or down is learned, so that the layer's outputs move least.

After Nagel et al. 2020 (arXiv 2004.10568): a rectified sigmoid per weight, a penalty with annealed exponent that
drives it to 0 or 1, Adam. The loss is the layer's squared error over *all* positions looked at, which their second
moment gives exactly, instead of a sample of them in every iteration.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from modelpack.numerics.quantization.correction.rounding import LIMIT, error, nearest

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from modelpack.numerics.quantization.correction.rounding import Bounds

    Reals = NDArray[np.float64]

ITERATIONS = 500
"""Steps of Adam."""

RATE = 3e-2
"""Adam's learning rate."""

PENALTY = 1.0
"""Weight of the penalty, in units of what one wrong step costs."""

WARMUP = 0.2
"""Share of the iterations without penalty."""

BETA = (20.0, 2.0)
"""Exponent of the penalty at its start and at its end."""

STRETCH = (-0.1, 1.1)
"""Ends of the sigmoid before it is rectified."""


def learned(
    weights: Reals, scales: Reals, moment: Reals, bounds: Bounds = (-LIMIT, LIMIT), device: str = "cpu"
) -> Reals:
    """Round weights so that the outputs move little; no row moves more than rounding to nearest would have it.

    The start is what the weights are and the loss has no samples, so nothing is random.

    Args:
        weights: Real weights, ``(g, r, k)``.
        scales: Step of each row, ``(g, r)``.
        moment: Second moment of the inputs, ``(g, k, k)``, positive definite.
        bounds: Smallest and largest integer.
        device: Where to compute, as torch names it.

    Returns:
        Integers inside `bounds` as float64, ``(g, r, k)``.
    """
    import torch

    plain = nearest(weights, scales, bounds)
    low, high = bounds
    counted = np.clip(weights / scales[:, :, None], low, high)
    down = np.floor(counted)
    near, base, square = (
        torch.from_numpy(np.ascontiguousarray(item)).to(device, torch.float32)
        for item in (counted, down, _normal(moment))
    )
    up = _choices(near, base, square).cpu().numpy()
    steps = np.clip(down + up, low, high)
    worse = error(steps, weights, scales, moment) > error(plain, weights, scales, moment)
    return np.where(worse[:, :, None], plain, steps)


def _normal(moment: Reals) -> Reals:
    """Scale each group's moment so that one wrong step costs about one."""
    mean = np.trace(moment, axis1=1, axis2=2) / moment.shape[1]
    return np.asarray(moment / mean[:, None, None], dtype=np.float64)


def _choices(counted: Any, down: Any, moment: Any) -> Any:
    """Learn which weights, counted in steps, to round up: 1 for up, 0 for down."""
    import torch

    low, high = STRETCH
    part = (counted - down).clamp(0.01, 0.99)
    logits = torch.logit((part - low) / (high - low)).requires_grad_()
    optimizer = torch.optim.Adam([logits], lr=RATE)
    for iteration in range(ITERATIONS):
        soft = (torch.sigmoid(logits) * (high - low) + low).clamp(0, 1)
        gap = down + soft - counted
        # A quarter of the work of differentiating both factors: the moment is symmetric.
        loss = 2 * ((gap.detach() @ moment) * gap).sum()
        reached = (iteration / ITERATIONS - WARMUP) / (1 - WARMUP)
        if reached >= 0:
            beta = BETA[0] + (BETA[1] - BETA[0]) * reached
            loss = loss + PENALTY * (1 - (2 * soft - 1).abs().pow(beta)).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return (logits.detach() >= 0).to(torch.float32)

"""Rounding weights together: each column's error is made up for by the columns that are not rounded yet.

After GPTQ (Frantar et al. 2022, arXiv 2210.17323), which walks the columns with the Cholesky factor of the inverse
moment, with two differences: weights are rounded towards those that bring the *float* layer's outputs out of the
*quantized* inputs, and steps that still lower the error are taken afterwards. Groups of a convolution are problems of
their own, solved side by side.

Shapes: ``g`` groups, ``r`` rows (outputs of a group), ``k`` columns (inputs of one output).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Reals = NDArray[np.float64]

LIMIT = 127
"""Largest magnitude of a rounded weight."""

BLOCK = 128
"""Columns whose effect on all later ones is gathered before it is applied."""

SWEEPS = 3
"""How often every weight is tried again at the end."""


def damped(moment: Reals, share: float) -> Reals:
    """Add `share` of the mean diagonal to the diagonal, so that a moment ``(g, k, k)`` of few rows can be inverted."""
    mean = np.trace(moment, axis1=1, axis2=2) / moment.shape[1]
    added = np.where(mean > 0, share * mean, 1.0)
    return np.asarray(moment + added[:, None, None] * np.eye(moment.shape[1]), dtype=np.float64)


def fitted(weights: Reals, moment: Reals, cross: Reals, share: float) -> Reals:
    """Give the real weights that best bring wanted outputs out of the inputs, drawn to the given ones by damping.

    Args:
        weights: The float layer's, ``(g, r, k)``.
        moment: Second moment of the inputs, ``(g, k, k)``, not damped.
        cross: Moment of wanted outputs with inputs, ``(g, r, k)``.
        share: Of `damped`.
    """
    firm = damped(moment, share)
    right = cross + weights @ (firm - moment)
    return np.swapaxes(np.linalg.solve(firm, np.swapaxes(right, 1, 2)), 1, 2)


def nearest(weights: Reals, scales: Reals) -> Reals:
    """Round weights ``(g, r, k)`` to the nearest of the integers -127 to 127 times their row's scale ``(g, r)``."""
    return np.clip(np.rint(weights / scales[:, :, None]), -LIMIT, LIMIT)


def error(steps: Reals, weights: Reals, scales: Reals, moment: Reals) -> Reals:
    """Give each row's squared error of the outputs, ``(g, r)``, summed over the rows of inputs behind the moment."""
    gap = steps * scales[:, :, None] - weights
    return np.asarray(((gap @ moment) * gap).sum(axis=2), dtype=np.float64)


def rounded(weights: Reals, scales: Reals, moment: Reals) -> Reals:
    """Round weights so that the outputs move little; no row moves more than rounding to nearest would have it.

    Args:
        weights: Real weights, ``(g, r, k)``.
        scales: Step of each row, ``(g, r)``.
        moment: Second moment of the inputs, ``(g, k, k)``, positive definite (see `damped`).

    Returns:
        Integers -127 to 127 as float64, ``(g, r, k)``.
    """
    plain = nearest(weights, scales)
    order = np.argsort(-np.diagonal(moment, axis1=1, axis2=2), axis=1, kind="stable")  # largest inputs first
    across = order[:, None, :]
    sorted_moment = np.take_along_axis(np.take_along_axis(moment, order[:, :, None], 1), across, 2)
    walked = _walk(np.take_along_axis(weights, across, 2), scales, sorted_moment)
    steps = np.take_along_axis(walked, np.argsort(order, axis=1)[:, None, :], 2)
    worse = error(steps, weights, scales, moment) > error(plain, weights, scales, moment)
    return _polished(np.where(worse[:, :, None], plain, steps), weights, scales, moment)


def _walk(weights: Reals, scales: Reals, moment: Reals) -> Reals:
    """Round column after column, the error of each spread over the later ones."""
    lower = np.linalg.cholesky(np.linalg.inv(moment))
    columns = weights.shape[2]
    left, steps = weights.copy(), np.empty_like(weights)
    for start in range(0, columns, BLOCK):
        stop = min(start + BLOCK, columns)
        errors = np.empty((*weights.shape[:2], stop - start))
        for column in range(start, stop):
            steps[:, :, column] = np.clip(np.rint(left[:, :, column] / scales), -LIMIT, LIMIT)
            gap = (left[:, :, column] - steps[:, :, column] * scales) / lower[:, column, column][:, None]
            left[:, :, column:stop] -= gap[:, :, None] * lower[:, None, column:stop, column]
            errors[:, :, column - start] = gap
        left[:, :, stop:] -= errors @ np.swapaxes(lower[:, stop:, start:stop], 1, 2)
    return steps


def _polished(steps: Reals, weights: Reals, scales: Reals, moment: Reals) -> Reals:
    """Move single weights by whole steps while that lowers the error."""
    steps = steps.copy()
    slope = (steps * scales[:, :, None] - weights) @ moment
    for _ in range(SWEEPS):
        moved = False
        for column in range(weights.shape[2]):
            wanted = np.rint(slope[:, :, column] / (scales * moment[:, column, column][:, None]))
            new = np.clip(steps[:, :, column] - wanted, -LIMIT, LIMIT)
            change = new - steps[:, :, column]
            if change.any():
                moved = True
                steps[:, :, column] = new
                slope += (change * scales)[:, :, None] * moment[:, None, column, :]
        if not moved:
            break
    return steps

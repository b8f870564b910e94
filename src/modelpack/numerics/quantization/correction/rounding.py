"""Rounding weights together: each column's error is made up for by the columns that are not rounded yet.

After GPTQ (Frantar et al. 2022, arXiv 2210.17323), which walks the columns with the Cholesky factor of the inverse
moment, with two differences: weights are rounded towards those that bring the *float* layer's outputs out of the
*quantized* inputs, and steps that still lower the error are taken afterwards. Groups of a convolution are problems of
their own, solved side by side.

Shapes: ``g`` groups, ``r`` rows (outputs of a group), ``k`` columns (inputs of one output). Scales and bounds hold for
a row ``(g, r)`` or for each weight ``(g, r, k)``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Reals = NDArray[np.float64]
    Bounds = tuple[Reals | int, Reals | int]

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


def nearest(weights: Reals, scales: Reals, bounds: Bounds = (-LIMIT, LIMIT)) -> Reals:
    """Round weights ``(g, r, k)`` to the nearest of the integers inside `bounds` times their scale."""
    return np.clip(np.rint(weights / _each(scales, weights)), *(_each(bound, weights) for bound in bounds))


def _each(values: Reals | int, weights: Reals) -> Reals:
    """View scales or bounds with one value per weight."""
    given = np.asarray(values, dtype=np.float64)
    return np.broadcast_to(given[:, :, None] if given.ndim == 2 else given, weights.shape)


def error(steps: Reals, weights: Reals, scales: Reals, moment: Reals) -> Reals:
    """Give each row's squared error of the outputs, ``(g, r)``, summed over the rows of inputs behind the moment."""
    gap = steps * _each(scales, weights) - weights
    return np.asarray(((gap @ moment) * gap).sum(axis=2), dtype=np.float64)


def rounded(weights: Reals, scales: Reals, moment: Reals, bounds: Bounds = (-LIMIT, LIMIT)) -> Reals:
    """Round weights so that the outputs move little; no row moves more than rounding to nearest would have it.

    Args:
        weights: Real weights, ``(g, r, k)``.
        scales: Step of each row or weight.
        moment: Second moment of the inputs, ``(g, k, k)``, positive definite (see `damped`).
        bounds: Smallest and largest integer of each row or weight.

    Returns:
        Integers inside `bounds` as float64, ``(g, r, k)``.
    """
    plain = nearest(weights, scales, bounds)
    order = np.argsort(-np.diagonal(moment, axis1=1, axis2=2), axis=1, kind="stable")  # largest inputs first
    across = order[:, None, :]
    sorted_moment = np.take_along_axis(np.take_along_axis(moment, order[:, :, None], 1), across, 2)
    parts = (np.take_along_axis(_each(item, weights), across, 2) for item in (weights, scales, *bounds))
    walked = _walk(sorted_moment, *parts)
    steps = np.take_along_axis(walked, np.argsort(order, axis=1)[:, None, :], 2)
    worse = error(steps, weights, scales, moment) > error(plain, weights, scales, moment)
    return _polished(np.where(worse[:, :, None], plain, steps), weights, scales, moment, bounds)


def _walk(moment: Reals, weights: Reals, scales: Reals, low: Reals, high: Reals) -> Reals:
    """Round column after column, the error of each spread over the later ones."""
    lower = np.linalg.cholesky(np.linalg.inv(moment))
    columns = weights.shape[2]
    left, steps = weights.copy(), np.empty_like(weights)
    for start in range(0, columns, BLOCK):
        stop = min(start + BLOCK, columns)
        errors = np.empty((*weights.shape[:2], stop - start))
        for column in range(start, stop):
            scale = scales[:, :, column]
            step = np.clip(np.rint(left[:, :, column] / scale), low[:, :, column], high[:, :, column])
            gap = (left[:, :, column] - step * scale) / lower[:, column, column][:, None]
            left[:, :, column:stop] -= gap[:, :, None] * lower[:, None, column:stop, column]
            steps[:, :, column], errors[:, :, column - start] = step, gap
        left[:, :, stop:] -= errors @ np.swapaxes(lower[:, stop:, start:stop], 1, 2)
    return steps


def _polished(steps: Reals, weights: Reals, scales: Reals, moment: Reals, bounds: Bounds = (-LIMIT, LIMIT)) -> Reals:
    """Move single weights by whole steps while that lowers the error; shapes as in `rounded`."""
    steps = steps.copy()
    scale, least, most = (_each(item, weights) for item in (scales, *bounds))
    slope = (steps * scale - weights) @ moment
    for _ in range(SWEEPS):
        moved = False
        for column in range(weights.shape[2]):
            step = scale[:, :, column]
            wanted = np.rint(slope[:, :, column] / (step * moment[:, column, column][:, None]))
            new = np.clip(steps[:, :, column] - wanted, least[:, :, column], most[:, :, column])
            change = (new - steps[:, :, column]) * step
            group, row = np.nonzero(change)  # few, and each concerns a whole row of the slope
            if row.size:
                moved = True
                steps[:, :, column] = new
                slope[group, row] += change[group, row, None] * moment[group, column]
        if not moved:
            break
    return steps

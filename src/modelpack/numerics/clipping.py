"""Outliers of weights, cut off: a few large weights make the steps of all others in their channel coarse.

A grid of ``b`` bits has ``2^(b-1) - 1`` steps to the largest magnitude. Ending it earlier makes the steps finer, and
costs the error of what lies beyond; the end with the smallest squared error of both is searched for, as in ACIQ
(Banner et al. 2019, arXiv 1810.05723) and OCTAV (Sakr et al. 2022, arXiv 2206.06501), but on the weights themselves.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from modelpack.errors import StageError
from modelpack.numerics import matrices

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)

_LEAST = 0.01
"""The earliest end that is tried, as a share of the largest magnitude."""

_COARSE, _FINE = 96, 12
"""Ends tried over the whole span, and between the neighbours of the best of them."""


@dataclass(frozen=True)
class Clipped:
    """What was done to one layer.

    Attributes:
        layer: Its path.
        count: Weights that were cut.
        weights: All its weights.
        before: Squared error of rounding it as it was.
        after: The same once cut, against the weights as they were.
        power: Sum of the squares of its weights.
    """

    layer: str
    count: int
    weights: int
    before: float
    after: float
    power: float

    def to_json(self) -> dict[str, str | int | float]:
        """Give a row of the report."""
        return {
            "layer": self.layer,
            "clipped": self.count,
            "sqnr_db_before": ratio_db(self.power, self.before),
            "sqnr_db_after": ratio_db(self.power, self.after),
        }


def ratio_db(power: float, error: float) -> float:
    """Give a ratio of signal to noise in decibels, at most 200."""
    return min(200.0, 10 * math.log10(power / error)) if power > 0 < error else 200.0


@torch.no_grad()
def clip(
    module: nn.Module, bits: int, percentile: float | None, exclude: Iterable[str], *, channels: bool
) -> tuple[list[Clipped], dict[str, str]]:
    """Cut the weights of every layer, in place.

    Args:
        module: The model.
        bits: Of the grid that it is to be rounded to.
        percentile: Per cent of the magnitudes that stay as they are; None for the end with the smallest error.
        exclude: Glob patterns of module paths.
        channels: Whether each output channel has an end of its own, or the layer one.

    Returns:
        What was done, and the layers left alone with their reasons.

    Raises:
        StageError: When a pattern matches no module, weights are not finite, or there is no layer.
    """
    excluded, embeddings = matrices.named(module, exclude, "exclude"), matrices.shared(module)
    done: dict[int, Clipped] = {}
    left: dict[str, str] = {}
    for path, layer in _layers(module):
        reason = "excluded" if path in excluded else matrices.foreign(layer, embeddings)
        if reason:
            left[path] = reason
        elif id(layer.weight) not in done:
            axis = 1 if getattr(layer, "transposed", False) else 0
            done[id(layer.weight)] = _cut(path, layer.weight, axis if channels else None, bits, percentile)
    if not done:
        raise StageError("the model has no layer whose weights could be clipped", then="see `exclude`")
    return list(done.values()), left


def _layers(module: nn.Module) -> Iterator[tuple[str, nn.Linear]]:
    for path, layer in module.named_modules():
        if isinstance(layer, _LAYERS):
            yield path, layer  # type: ignore[misc]


def _cut(path: str, weight: Tensor, axis: int | None, bits: int, percentile: float | None) -> Clipped:
    if not bool(weight.isfinite().all()):
        raise StageError("the weights of this layer are not finite", where=path)
    values = weight.detach().double()
    rows = values.reshape(1, -1) if axis is None else values.movedim(axis, 0).flatten(1)
    largest = rows.abs().amax(1)
    ends = best(rows, bits) if percentile is None else _quantile(rows.abs(), percentile / 100)
    shape = [1] * weight.ndim
    if axis is not None:
        shape[axis] = -1
    limits = ends.reshape(shape).to(weight.dtype)
    count = int((weight.abs() > limits).sum())
    weight.copy_(torch.minimum(torch.maximum(weight, -limits), limits))
    before, after = (float(error(rows, item, bits).sum()) for item in (largest, ends))
    return Clipped(path, count, weight.numel(), before, after, float(rows.square().sum()))


def _quantile(sizes: Tensor, share: float) -> Tensor:
    """Give a quantile of each row, ``(n,)``, as torch does, which refuses large rows."""
    place = share * (sizes.shape[1] - 1)
    below, above = (sizes.kthvalue(whole(place) + 1, dim=1).values for whole in (math.floor, math.ceil))
    return below + (above - below) * (place - math.floor(place))


def error(rows: Tensor, ends: Tensor, bits: int) -> Tensor:
    """Give each row's squared error ``(n,)`` when it is rounded to a grid around zero that ends there.

    Args:
        rows: ``(n, k)``, float64.
        ends: ``(n,)``, not negative.
        bits: Of the grid.
    """
    top = 2 ** (bits - 1) - 1
    step = (ends / top)[:, None]
    safe = torch.where(step > 0, step, torch.ones_like(step))
    made = (rows / safe).round().clamp(-top, top) * step
    return torch.sum((made - rows).square(), 1)


def best(rows: Tensor, bits: int) -> Tensor:
    """Search for the end with the smallest error of each row, ``(n,)``; never worse than the largest magnitude."""
    sizes = rows.abs()
    largest = sizes.amax(1)
    ends, least = largest, error(rows, largest, bits)
    gap = _LEAST ** (1 / _COARSE)
    for place in range(1, _COARSE + 1):
        end = largest * gap**place
        # What lies beyond an end costs more the earlier it is: no earlier one can be better.
        if bool(((sizes - end[:, None]).clamp_min(0).square().sum(1) >= least).all()):
            break
        ends, least = _better(rows, bits, ends, least, end)
    middle = ends
    for place in range(1, _FINE):
        end = torch.minimum(middle * gap ** (2 * place / _FINE - 1), largest)
        ends, least = _better(rows, bits, ends, least, end)
    return ends


def _better(rows: Tensor, bits: int, ends: Tensor, least: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    found = error(rows, other, bits)
    return torch.where(found < least, other, ends), torch.minimum(found, least)

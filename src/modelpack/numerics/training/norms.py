"""Batch norms whose statistics are those of the whole batch, wherever its rows are.

torch's own synchronized batch norm computes on CUDA only; this one on every device, and it is no module that would
have to be taken out again: batch norms keep their class, tensors and names, and compute differently for a while.
"""

from __future__ import annotations

import contextlib
from types import MethodType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from modelpack.numerics.fake_quantization.rounding import ObservedBytes
from modelpack.numerics.training import crew, sharing

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextlib.contextmanager
def synchronized(module: nn.Module) -> Iterator[None]:
    """Let a module see the whole batch while its rows are dealt out to a crew.

    Batch norms normalize by it, and what follows the range of an activation follows that of all rows.
    """
    following = [layer for layer in module.modules() if isinstance(layer, ObservedBytes) and crew.size() > 1]
    alone = [layer.reach for layer in following]
    layers = [
        layer
        for layer in module.modules()
        if isinstance(layer, nn.modules.batchnorm._BatchNorm) and crew.size() > 1  # noqa: SLF001
    ]
    for layer in layers:
        layer.forward = MethodType(_forward, layer)  # type: ignore[method-assign]
    for observer in following:
        observer.reach = sharing.extremes
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward
        for observer, reach in zip(following, alone, strict=True):
            observer.reach = reach


def _forward(layer: nn.modules.batchnorm._BatchNorm, values: Tensor) -> Tensor:
    share = sharing.current()
    if share is None or not (layer.training or layer.running_mean is None):
        return type(layer).forward(layer, values)
    layer._check_input_dim(values)  # type: ignore[no-untyped-call]  # noqa: SLF001
    found: tuple[Tensor, ...] = _Normalized.apply(  # type: ignore[no-untyped-call]
        values, layer.weight, layer.bias, (layer.eps, bool(share.rows))
    )
    normalized, mean, variance, count = found
    if layer.training and layer.track_running_stats:
        _remember(layer, mean, variance * (count / (count - 1)))
    return normalized


@torch.no_grad()
def _remember(layer: nn.modules.batchnorm._BatchNorm, mean: Tensor, variance: Tensor) -> None:
    assert layer.running_mean is not None
    assert layer.running_var is not None
    assert layer.num_batches_tracked is not None
    layer.num_batches_tracked.add_(1)
    pace = layer.momentum if layer.momentum is not None else 1.0 / float(layer.num_batches_tracked)
    for kept, now in ((layer.running_mean, mean), (layer.running_var, variance)):
        kept.mul_(1 - pace).add_(now.to(kept.dtype) * pace)


class _Normalized(torch.autograd.Function):
    """Batch normalization (Ioffe and Szegedy 2015, arXiv 1502.03167) with sums over all processes in both directions.

    The parts' means and variances are put together as in Chan, Golub and LeVeque (1979). Rows that do not count change
    no statistics, and no gradient flows back through the statistics into them.
    """

    @staticmethod
    def forward(
        ctx: Any, values: Tensor, weight: Tensor | None, bias: Tensor | None, settings: tuple[float, bool]
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        eps, counts = settings
        flat = _precise(values.detach())
        axes, shape = _axes(values)
        number = float(values.numel() // values.shape[1]) if counts else 0.0
        variance, mean = torch.var_mean(flat, axes, correction=0)
        rows = crew.stacked(torch.cat([flat.new_tensor([number]), mean, variance]))
        numbers, means, variances = rows[:, :1], *rows[:, 1:].chunk(2, 1)
        count = numbers.sum()
        if float(count) <= 1:
            raise ValueError(f"a batch norm learns from more than one value a channel, not from {float(count):g}")
        mean = (numbers * means).sum(0) / count
        variance = (numbers * (variances + (means - mean) ** 2)).sum(0) / count
        scale = (variance + eps).rsqrt()
        ctx.save_for_backward(values, weight, mean, scale)
        ctx.count, ctx.counts, ctx.biased = count, counts, bias is not None
        result = (flat - mean.view(shape)) * scale.view(shape)
        result = result * weight.view(shape) if weight is not None else result
        result = result + bias.view(shape) if bias is not None else result
        ctx.mark_non_differentiable(mean, variance, count)
        return result.to(values.dtype), mean, variance, count

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, *_unused: Tensor) -> tuple[Tensor | None, ...]:
        values, weight, mean, scale = ctx.saved_tensors
        axes, shape = _axes(values)
        slope = _precise(gradient)
        normal = (_precise(values) - mean.view(shape)) * scale.view(shape)
        for_bias, for_weight = slope.sum(axes), (slope * normal).sum(axes)
        both = crew.total(torch.cat([for_bias, for_weight]))
        along, across = ((part / ctx.count * ctx.counts).view(shape) for part in both.chunk(2))
        back = (slope - along - normal * across) * scale.view(shape)
        back = back * weight.view(shape) if weight is not None else back
        return (
            back.to(values.dtype),
            for_weight.to(weight.dtype) if weight is not None else None,
            for_bias.to(mean.dtype) if ctx.biased else None,
            None,
        )


def _precise(values: Tensor) -> Tensor:
    """Give values of half precision as float32, in which sums over a batch are exact enough."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _axes(values: Tensor) -> tuple[list[int], list[int]]:
    """Give the axes to sum over, and the shape in which a vector of channels lies along the values."""
    return [axis for axis in range(values.ndim) if axis != 1], [1, -1, *[1] * (values.ndim - 2)]

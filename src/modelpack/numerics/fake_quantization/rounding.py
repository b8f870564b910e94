"""Modules that round values to a grid and give them back as floats, so that a model computes what its integers will.

Activations are rounded to unsigned bytes on one grid, weights to signed bytes (-127 to 127) with a scale a channel,
like the ONNX operators that an export writes. Gradients pass through the rounding (straight-through estimator,
Bengio et al. 2013, arXiv 1308.3432) and stop where a value was clipped.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from modelpack.numerics.grid import SMALLEST_SCALE

Reach = Callable[[Tensor, Tensor, bool], tuple[Tensor, Tensor]]
"""Gives bounds for bounds: the widest of several, or their mean."""

BYTE = (0, 255)
SIGNED = (-127, 127)
PACE = 10.0
"""How many times faster than weights the logarithms of learned scales move (Jain et al. 2019, arXiv 1903.08066, give
thresholds a rate of their own). AdamW's steps have the size of the rate whatever they move: of a weight that is much,
of a scale it is one part in thousands, and the training would end before the grids had changed."""


def _round_bytes(values: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    return torch.fake_quantize_per_tensor_affine(values, scale, zero_point, *BYTE)


def _round_channels(values: Tensor, scales: Tensor, axis: int) -> Tensor:
    zeros = torch.zeros_like(scales, dtype=torch.int32)
    return torch.fake_quantize_per_channel_affine(values, scales, zeros, axis, *SIGNED)


class FixedBytes(nn.Module):
    """Rounds an activation to a grid that stands."""

    scale: Tensor
    zero_point: Tensor

    def __init__(self, scale: float, zero_point: int) -> None:
        super().__init__()
        self.register_buffer("scale", torch.tensor(scale, dtype=torch.float32))
        self.register_buffer("zero_point", torch.tensor(zero_point, dtype=torch.int32))

    def grid(self) -> tuple[Tensor, Tensor]:
        """Give scale (float32) and zero point (int32), both of shape ()."""
        return self.scale, self.zero_point

    def forward(self, values: Tensor) -> Tensor:
        """Round values of any shape."""
        return _round_bytes(values, *self.grid())


class ObservedBytes(nn.Module):
    """Rounds an activation to a grid that follows the range of its values.

    While `watching`, values pass as they are and their range is noted: the widest of all batches, or for a share
    below 100 per cent the mean of the batches' percentiles. Afterwards each training step moves the range a little
    towards its batch's own (moving average, Jacob et al. 2017, arXiv 1712.05877), until `steps` are over.

    Attributes:
        share: Per cent of the values that the range holds, the rest cut evenly at both ends.
        pace: Part of the way that one step moves the range.
        reach: Makes the bounds of a whole batch of those of its rows here, where processes share one.
    """

    low: Tensor
    high: Tensor
    seen: Tensor
    left: Tensor

    def __init__(self, share: float, pace: float = 0.01) -> None:
        super().__init__()
        self.share, self.pace, self.watching = share, pace, True
        self.reach: Reach = _own
        for name in ("low", "high"):
            self.register_buffer(name, torch.zeros(()))
        for name in ("seen", "left"):
            self.register_buffer(name, torch.zeros((), dtype=torch.int64))

    def follow(self, steps: int) -> None:
        """Stop watching; move with the next `steps` training steps."""
        self.watching = False
        self.left.fill_(steps)

    def grid(self) -> tuple[Tensor, Tensor]:
        """Give scale (float32) and zero point (int32) of 256 steps over the range, widened to contain zero."""
        low, high = self.low.clamp(max=0.0), self.high.clamp(min=0.0)
        scale = ((high - low) / 255.0).clamp(min=SMALLEST_SCALE)
        return scale, (-low / scale).round().clamp(*BYTE).to(torch.int32)

    def forward(self, values: Tensor) -> Tensor:
        """Round values of any shape, or only watch them."""
        if self.watching:
            self._watch(values)
            return values
        if self.training:
            self._move(values)
        return _round_bytes(values, *self.grid())

    @torch.no_grad()
    def _watch(self, values: Tensor) -> None:
        low, high = _bounds(values, self.share)
        if self.share < 100:
            low = self.low + (low - self.low) / (self.seen + 1)
            high = self.high + (high - self.high) / (self.seen + 1)
        elif int(self.seen):
            low, high = torch.minimum(self.low, low), torch.maximum(self.high, high)
        self.low.copy_(low)
        self.high.copy_(high)
        self.seen += 1

    @torch.no_grad()
    def _move(self, values: Tensor) -> None:
        pace = self.pace * (self.left > 0)
        bounds = self.reach(*_bounds(values, self.share), self.share == 100)
        for bound, now in zip((self.low, self.high), bounds, strict=True):
            bound.add_((now - bound) * pace)
        self.left.sub_(1).clamp_(min=0)


def _own(low: Tensor, high: Tensor, _widest: bool) -> tuple[Tensor, Tensor]:
    return low, high


def _bounds(values: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """Give the values between which `share` per cent of all lie; smallest and largest for 100."""
    flat = values.detach().float().flatten()
    cut = int(flat.numel() * (100 - share) / 200)
    if cut == 0:
        low, high = torch.aminmax(flat)
        return low, high
    return flat.topk(cut + 1, largest=False).values[-1], flat.topk(cut + 1).values[-1]


class Channels(nn.Module):
    """Rounds weights so that the largest of each channel is the last step."""

    def __init__(self, axis: int) -> None:
        super().__init__()
        self.axis = axis

    def scales(self, weights: Tensor) -> Tensor:
        """Give the scale of every channel (float32); 1 for one of zeros."""
        return _full_scales(weights, self.axis)

    def forward(self, weights: Tensor) -> Tensor:
        """Round weights whose `axis` counts channels."""
        return _round_channels(weights, self.scales(weights), self.axis)


@torch.no_grad()
def _full_scales(weights: Tensor, axis: int) -> Tensor:
    others = [place for place in range(weights.ndim) if place != axis]
    largest = weights.abs().amax(others) if others else weights.abs()
    return torch.where(largest == 0, 1.0, largest / SIGNED[1]).clamp(min=SMALLEST_SCALE).float()


class LearnedBytes(nn.Module):
    """Rounds an activation to a grid whose scale is learned; its zero point stands, so that zero stays on it."""

    log_start: Tensor
    zero_point: Tensor

    def __init__(self, scale: Tensor, zero_point: Tensor) -> None:
        super().__init__()
        self.register_buffer("log_start", scale.detach().log())
        self.moved = nn.Parameter(torch.zeros_like(scale))
        self.register_buffer("zero_point", zero_point.clone())

    def grid(self) -> tuple[Tensor, Tensor]:
        """Give scale (float32) and zero point (int32), both of shape ()."""
        return (self.log_start + PACE * self.moved).exp(), self.zero_point

    def forward(self, values: Tensor) -> Tensor:
        """Round values of shape (rows, …)."""
        scale, zero_point = self.grid()
        if not self.training:
            return _round_bytes(values, scale.detach(), zero_point)
        factor = 1 / math.sqrt(max(1, values.numel() // max(1, values.shape[0])) * BYTE[1])
        rounded: Tensor = _Learned.apply(values, scale, zero_point, (*BYTE, factor))  # type: ignore[no-untyped-call]
        return rounded


class LearnedChannels(nn.Module):
    """Rounds weights with scales that are learned: they may clip a channel's largest weights, never exceed them.

    So each channel's largest rounded weight is the last step, and its scale can be read off the rounded weights.
    """

    log_starts: Tensor

    def __init__(self, scales: Tensor, axis: int) -> None:
        super().__init__()
        self.register_buffer("log_starts", scales.detach().log())
        self.moved = nn.Parameter(torch.zeros_like(scales))
        self.axis = axis

    def scales(self, weights: Tensor) -> Tensor:
        """Give the scale of every channel (float32)."""
        learned = (self.log_starts + PACE * self.moved).exp()
        return torch.minimum(learned, _full_scales(weights, self.axis))

    def forward(self, weights: Tensor) -> Tensor:
        """Round weights whose `axis` counts channels."""
        scales = self.scales(weights)
        if not self.training:
            return _round_channels(weights, scales.detach(), self.axis)
        factor = 1 / math.sqrt(weights.numel() / scales.numel() * SIGNED[1])
        shape = [-1 if place == self.axis else 1 for place in range(weights.ndim)]
        zero = torch.zeros((), dtype=torch.int32, device=weights.device)
        rounded: Tensor = _Learned.apply(weights, scales.reshape(shape), zero, (*SIGNED, factor))  # type: ignore[no-untyped-call]
        return rounded


class _Learned(torch.autograd.Function):
    """Rounding whose scale has a gradient: learned step size quantization, LSQ (Esser et al. 2019, arXiv 1902.08153).

    Inside the grid the scale's slope is the rounding error in steps, outside it is the last step's number. The factor
    makes it as large as the gradients of the values (section 2.2 of the paper).
    """

    @staticmethod
    def forward(
        ctx: Any, values: Tensor, scale: Tensor, zero_point: Tensor, settings: tuple[int, int, float]
    ) -> Tensor:
        low, high, _ = ctx.settings = settings
        ctx.save_for_backward(values, scale, zero_point)
        return ((values / scale).round() + zero_point).clamp(low, high).sub(zero_point) * scale

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        values, scale, zero_point = ctx.saved_tensors
        low, high, factor = ctx.settings
        position = values / scale
        step = position.round()
        last = (step + zero_point).clamp(low, high) - zero_point
        inside = step == last
        rise = torch.where(inside, step - position, last) * gradient * factor
        return gradient * inside, rise.sum_to_size(scale.shape), None, None

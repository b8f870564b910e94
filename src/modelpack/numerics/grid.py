"""The grids of integers that real numbers are rounded to: ``real = scale * (integer - zero_point)``.

Activations take the integers that the hardware multiplies fastest (`quantization.hardware`), weights signed bytes
around zero (ONNX ``QuantizeLinear``, opset 13 and later; 16-bit integers from opset 21 on).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

SMALLEST_SCALE = float(np.float32(2.0**-100))
"""A grid finer than this would overflow when it is inverted in float32."""

_TIE = 1e-3
"""Steps by which zero may be off the middle of two others: there onnxruntime takes no clip for part of the rounding."""

BIAS_LIMIT = 2**30
"""Largest magnitude of a quantized bias; half of int32, so that products can be added to it."""


Integer = type[np.uint8 | np.int8 | np.uint16 | np.int16]


@dataclass(frozen=True)
class Grid:
    """One scale and zero point for a whole tensor; the zero point's type is that of the integers."""

    scale: np.float32
    zero_point: np.integer[Any]


def asymmetric(low: float, high: float, integer: Integer = np.uint8) -> Grid:
    """Spread all values of an integer type over a range of activations, widened to contain zero exactly.

    Zero must be on the grid, because padding and ReLU produce it.

    >>> asymmetric(0.0, 255.0)
    Grid(scale=np.float32(1.0), zero_point=np.uint8(0))
    >>> asymmetric(0.0, 255.0, np.int8)
    Grid(scale=np.float32(1.0), zero_point=np.int8(-128))

    Raises:
        ValueError: When a bound is not finite.
    """
    low, high = _range(low, high)
    least, most = np.iinfo(integer).min, np.iinfo(integer).max
    if low == high:
        return Grid(np.float32(1.0), integer(least))
    scale = np.float32(max((high - low) / (most - least), SMALLEST_SCALE))
    if abs(-low / float(scale) % 1.0 - 0.5) < _TIE:
        scale = np.float32(scale * (1.0 - _TIE / 2))
    zero_point = integer(np.clip(least + np.rint(-low / float(scale)), least, most))
    return Grid(scale, zero_point)


def symmetric(low: float, high: float, integer: Integer = np.int8) -> Grid:
    """Spread a signed integer type over a range of activations with zero as the zero point.

    >>> symmetric(-12.7, 3.0).zero_point
    np.int8(0)

    Raises:
        ValueError: When a bound is not finite.
    """
    low, high = _range(low, high)
    largest = max(-low, high)
    scale = max(largest / np.iinfo(integer).max, SMALLEST_SCALE) if largest else 1.0
    return Grid(np.float32(scale), integer(0))


def _range(low: float, high: float) -> tuple[float, float]:
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ValueError(f"no grid spans {low} to {high}")
    return min(float(low), 0.0), max(float(high), 0.0)


def symmetric_scales(weights: NDArray[np.float32], axis: int | None) -> NDArray[np.float32]:
    """Give the scales that map the largest magnitude to 127: one per slice along `axis`, or one in all for None.

    Args:
        weights: Any shape.
        axis: The axis of output channels.

    Returns:
        Shape ``(channels,)``, or ``()`` for None.
    """
    others = None if axis is None else tuple(place for place in range(weights.ndim) if place != axis)
    largest = np.abs(weights.astype(np.float64)).max(axis=others, initial=0.0)
    return np.maximum(np.where(largest == 0.0, 1.0, largest / 127.0), SMALLEST_SCALE).astype(np.float32)


def to_int8(weights: NDArray[np.float32], scales: NDArray[np.float32], axis: int | None) -> NDArray[np.int8]:
    """Round weights to the nearest step of their scales, -127 to 127, ties to even."""
    spread = scales.astype(np.float64)
    if axis is not None:
        spread = spread.reshape([-1 if place == axis else 1 for place in range(weights.ndim)])
    steps = np.rint(weights.astype(np.float64) / spread)
    return np.clip(steps, -127, 127).astype(np.int8)


def wide_enough(scales: NDArray[np.float32], bias: NDArray[np.float32], input_scale: float) -> NDArray[np.float32]:
    """Raise the scales of channels whose bias would not fit into 32 bits on the grid of their products.

    A nearly dead channel has a tiny scale; its bias counted in such steps overflows, and the channel turns to noise.
    """
    needed = np.abs(bias.astype(np.float64)) / (BIAS_LIMIT * float(input_scale))
    return np.maximum(scales, np.nextafter(needed.astype(np.float32), np.float32(np.inf)))


def to_int32(bias: NDArray[np.float32], scales: NDArray[np.float32]) -> NDArray[np.int32]:
    """Round a bias to the grid of the products it is added to."""
    return np.rint(bias.astype(np.float64) / scales.astype(np.float64)).astype(np.int32)

"""Weights whose products fit into 16 bits in pairs, whatever the activations: exact on every processor (`pairs`).

Halving the range of all weights would do as well, at the price of a bit of each. A pair is in danger only when both of
its weights have the same sign and add up to more than 128 steps; so each row's grid is widened by what its largest pair
needs, and by no more.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from onnx import ModelProto, NodeProto, numpy_helper

from modelpack.numerics import onnxfile
from modelpack.numerics.grid import SMALLEST_SCALE
from modelpack.numerics.quantization.correction import samples
from modelpack.numerics.quantization.saturation import pairs

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

HIGHEST = 128
"""Steps that two weights of one sign may add up to: 255 times as much fits into 16 bits."""


def scales(node: NodeProto, weights: NDArray[np.float32]) -> NDArray[np.float32]:
    """Give the scales at which no pair of a layer's weights can leave 16 bits.

    The largest pair is mapped to 127 steps, since rounding adds up to one.

    Args:
        node: A ``Conv``, ``Gemm`` or ``MatMul``.
        weights: Its weights.

    Returns:
        One per channel of the output, ``(channels,)``; that of a depthwise convolution is the smallest possible.
    """
    shape = samples.shape(node, weights)
    split = shape.split(weights).astype(np.float64)
    if pairs.exact(weights, shape):
        return np.full(split.shape[:2], SMALLEST_SCALE, np.float32).reshape(-1)
    orders = [split[:, :, pairs.order(weights, shape)]]
    if shape.kernel and weights.shape[1] % 2:  # its channels may be padded later, which parts the pairs otherwise
        places = split.reshape(*split.shape[:2], weights.shape[1], -1)
        orders.append(np.moveaxis(np.pad(places, ((0, 0), (0, 0), (0, 1), (0, 0))), 2, 3).reshape(*split.shape[:2], -1))
    largest = np.max([_largest(values) for values in orders], axis=0)
    return np.asarray(np.maximum(largest / 127.0, SMALLEST_SCALE), np.float32).reshape(-1)


def tame(model: ModelProto, chosen: Iterable[str]) -> None:
    """Take back what a correction of rounded weights added beyond 16 bits, from the larger of two. Changes `model`.

    Args:
        model: A quantized graph, as it will run.
        chosen: Names of the layers to hold to it.
    """
    tensors = {item.name: item for item in model.graph.initializer}
    makers, layers = onnxfile.producers(model.graph), frozenset(chosen)
    for node in model.graph.node:
        held = makers.get(node.input[1]) if node.name in layers else None
        if held is None:
            continue
        weights = onnxfile.array(tensors[held.input[0]])
        shape = samples.shape(node, weights)
        if pairs.exact(weights, shape):
            continue
        split = np.array(shape.split(weights), np.int8)
        order = pairs.order(weights, shape)
        split[:, :, order] = within(split[:, :, order])
        tensors[held.input[0]].CopyFrom(numpy_helper.from_array(shape.join(split, weights), held.input[0]))


def within(steps: NDArray[np.int8]) -> NDArray[np.int8]:
    """Lessen the larger weight of each pair until both fit.

    >>> within(np.array([[100, 40, -90, -20, 127]], np.int8)).tolist()
    [[88, 40, -90, -20, 127]]
    """
    odd = steps.shape[-1] % 2
    pairs = np.pad(steps.astype(np.int16), [(0, 0)] * (steps.ndim - 1) + [(0, odd)])
    pairs = pairs.reshape(*steps.shape[:-1], -1, 2)
    together = np.prod(np.sign(pairs), axis=-1) > 0
    excess = np.where(together, np.maximum(np.abs(pairs).sum(axis=-1) - HIGHEST, 0), 0)
    second = np.abs(pairs[..., 1]) > np.abs(pairs[..., 0])
    for place, larger in enumerate((~second, second)):
        pairs[..., place] -= (np.sign(pairs[..., place]) * np.where(larger, excess, 0)).astype(np.int16)
    return pairs.reshape(*steps.shape[:-1], -1)[..., : steps.shape[-1]].astype(np.int8)


def _largest(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Give the largest sum of two neighbours of one sign, per row."""
    odd = values.shape[-1] % 2
    pairs = np.pad(values, ((0, 0), (0, 0), (0, odd))).reshape(*values.shape[:2], -1, 2)
    sums = np.maximum(np.maximum(pairs, 0).sum(axis=3), -np.minimum(pairs, 0).sum(axis=3))
    return np.asarray(sums.max(axis=2, initial=0.0))

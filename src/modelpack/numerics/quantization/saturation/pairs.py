"""What processors with AVX2 and no VNNI get wrong: sums of two products, cut off at 16 bits.

Their instruction ``vpmaddubsw`` multiplies unsigned bytes with signed ones and adds neighbouring pairs in 16 bits, so
that ``255 * 127 + 255 * 127`` becomes 32,767. onnxruntime's kernels for U8S8 use it (its folder
``onnxruntime/core/mlas/lib/x86_64``: ``QgemmU8S8KernelAvx2.S``, ``QgemvU8S8KernelAvx2.S``, ``ConvSymKernelAvx2.S``, and
the same for AVX-512 without VNNI):

1. a pair is two neighbours in the order of the inner sum, beginning with the first: rows of a matrix, and for a
   convolution place of the kernel by place, with the channels of a group side by side; an odd last one has no partner;
2. activations are multiplied as they are, zero points are taken care of in 32 bits afterwards;
3. depthwise convolutions have kernels of their own, which are exact;
4. sums of pairs are exact.

Observed to be bit for bit what onnxruntime 1.31 computes on a processor whose VNNI was hidden from it.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from modelpack.numerics import onnxfile
from modelpack.numerics.quantization.correction import samples
from modelpack.numerics.quantization.correction.walk import Walk

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray
    from onnx import ModelProto, NodeProto, TensorProto

    from modelpack.numerics.quantization.correction.samples import Shape
    from modelpack.numerics.rows import Feed

    Bytes = NDArray[np.uint8]
    Weights = NDArray[np.int8]

LOWEST, HIGHEST = -(2**15), 2**15 - 1
"""What 16 bits hold."""

POSITIONS = 256
"""Positions of a layer that are looked at in each batch, at most."""

CHUNK = 4096
"""Pairs that are looked at together."""


def saturated(inputs: Bytes, weights: Weights) -> NDArray[np.float64]:
    """Give the share of the pairs that are cut off, per row of the weights.

    Args:
        inputs: Activations, ``(g, n, k)``.
        weights: Weights, ``(g, r, k)``.

    Returns:
        ``(g, r)``, from 0 to 1.

    >>> saturated(np.full((1, 1, 4), 255, np.uint8), np.array([[[127, 127, 127, -127]]], np.int8)).item()
    0.5
    """
    counts = np.zeros(weights.shape[:2])
    for group, row, sums in _sums(inputs, weights):
        np.add.at(counts, (group, row), ((sums < LOWEST) | (sums > HIGHEST)).sum(axis=1))
    return np.asarray(counts / max(inputs.shape[1] * -(-weights.shape[2] // 2), 1))


def _sums(inputs: Bytes, weights: Weights) -> Iterator[tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.int32]]]:
    """Add up the pairs that any activation could drive out of 16 bits: their groups, rows, and sums ``(pairs, n)``."""
    odd = weights.shape[2] % 2
    left = np.pad(weights.astype(np.int32), ((0, 0), (0, 0), (0, odd)))
    left = left.reshape(*left.shape[:2], -1, 2)
    right = np.pad(inputs, ((0, 0), (0, 0), (0, odd)))
    right = right.reshape(*right.shape[:2], -1, 2)
    most, least = (255 * side.sum(axis=3) for side in (np.maximum(left, 0), np.minimum(left, 0)))
    group, row, pair = np.nonzero((most > HIGHEST) | (least < LOWEST))
    for start in range(0, len(group), CHUNK):
        some = slice(start, start + CHUNK)
        factors = left[group[some], row[some], pair[some]]
        values = right[group[some], :, pair[some]].astype(np.int32)
        yield group[some], row[some], (values * factors[:, None, :]).sum(axis=2, dtype=np.int32)


def shares(
    model: ModelProto,
    chosen: Sequence[str],
    feeds: Iterable[Feed],
    *,
    seed: int = 0,
    device: str = "cpu",
    track: Callable[[Sequence[str]], Iterable[str]] = iter,
) -> dict[str, float]:
    """Run a quantized model, and say what share of each layer's pairs would be cut off.

    Args:
        model: A graph with unsigned activations and signed weights, as it will run.
        chosen: Names of its quantized layers.
        feeds: Rows to look at.
        seed: Seed of the choice of positions.
        device: Where the model runs.
        track: Passes the layers' names through, showing progress.

    Returns:
        Layer → share, for the layers where it is not zero.
    """
    walk, generator, found = Walk(model, feeds, device), np.random.default_rng(seed), dict[str, float]()
    tensors = {item.name: item for item in model.graph.initializer}
    places = {node.name: place for place, node in enumerate(model.graph.node)}
    for name in track(sorted((name for name in chosen if name in places), key=lambda name: places[name])):
        node = model.graph.node[places[name]]
        held = walk.makers.get(node.input[1])
        if held is None or held.input[0] not in tensors or not walk.held:
            continue
        weights = onnxfile.array(tensors[held.input[0]])
        shape = samples.shape(node, weights)
        split = shape.split(weights)
        if weights.dtype != np.int8 or exact(weights, shape):
            continue
        columns = order(weights, shape)
        source, zero = walk.rounded(node.input[0]), _zero(walk, tensors, node)
        seen = []
        for feed in walk.reach(places[name], [source]):
            given = feed[source]
            spots = samples.positions(
                _outputs(given.shape, shape), channels_last=not shape.kernel, most=POSITIONS, generator=generator
            )
            inputs = shape.gather(given, spots, zero).astype(np.uint8)
            seen.append(saturated(inputs[:, :, columns], split[:, :, columns].astype(np.int8)).mean())
        if np.mean(seen) > 0:
            found[name] = float(np.mean(seen))
    return found


def exact(weights: NDArray[np.generic], shape: Shape) -> bool:
    """Whether weights are those of a depthwise convolution."""
    return shape.groups > 1 and weights.shape[0] == shape.groups and weights.shape[1] == 1


def order(weights: NDArray[np.generic], shape: Shape) -> NDArray[np.intp]:
    """Give the order in which the kernels add columns up: a convolution's channels side by side."""
    if not shape.kernel:
        return np.arange(weights.shape[0 if shape.transposed else 1])
    return np.arange(math.prod(weights.shape[1:])).reshape(weights.shape[1], -1).T.reshape(-1)


def _outputs(given: tuple[int, ...], shape: Shape) -> tuple[int, ...]:
    """Give the sizes of a layer's output, one channel for all."""
    if not shape.kernel:
        return (*given[:-1], 1)
    sizes = given[2:]
    settings = zip(sizes, shape.padding(sizes), shape.kernel, shape.strides, shape.dilations, strict=True)
    places = (
        (size + sum(pads) - dilation * (kernel - 1) - 1) // stride + 1
        for size, pads, kernel, stride, dilation in settings
    )
    return (given[0], 1, *places)


def _zero(walk: Walk, tensors: Mapping[str, TensorProto], node: NodeProto) -> int:
    """Give the zero point of a layer's input, which its padding holds."""
    maker = walk.makers[node.input[0]]
    return int(onnxfile.array(tensors[maker.input[2]]))

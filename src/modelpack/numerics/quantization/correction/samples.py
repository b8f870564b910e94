"""What a layer sees at some positions: its inputs there as unsigned bytes, and what it should give.

A position is one output of every channel: a place in the picture for a convolution, a row for a matrix product.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from modelpack.numerics import onnxfile
from modelpack.numerics.quantization.layers import channel_axis

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from onnx import NodeProto

    Reals = NDArray[np.float64]
    Spots = tuple[NDArray[np.int64], ...]

MIDDLE = 128
"""Taken off the bytes before they are multiplied, so that no factor is larger than this."""

CHUNK = 1024
"""Positions that are multiplied at once: sums of so many products of two centred bytes are exact in float32."""


@dataclass(frozen=True)
class Shape:
    """How a layer's weights and inputs fall into groups of rows and columns.

    Attributes:
        groups: Independent parts of a convolution; 1 elsewhere.
        kernel: Sizes of a convolution's kernel; empty for a matrix product.
        strides: Steps of the kernel, per axis.
        dilations: Distances inside the kernel, per axis.
        pads: Zeros before and after, per axis; None for as many as keep the size (``auto_pad`` of ``SAME_...``).
        transposed: Whether the weights have one column per output.
        lower: Whether an odd zero of such padding comes before, not after.
    """

    groups: int
    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[tuple[int, int], ...] | None
    transposed: bool
    lower: bool = False

    def split(self, weights: NDArray[np.generic]) -> NDArray[np.generic]:
        """View weights as ``(groups, rows, columns)``."""
        flat = weights.T if self.transposed else weights.reshape(len(weights), -1)
        return flat.reshape(self.groups, -1, flat.shape[1])

    def join(self, split: NDArray[np.generic], like: NDArray[np.generic]) -> NDArray[np.generic]:
        """Undo `split`."""
        flat = split.reshape(-1, split.shape[2])
        return np.ascontiguousarray(flat.T if self.transposed else flat.reshape(like.shape))

    def padding(self, sizes: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
        """Give the zeros before and after each axis of a picture of these sizes."""
        if self.pads is not None:
            return self.pads
        found = []
        for size, kernel, stride, dilation in zip(sizes, self.kernel, self.strides, self.dilations, strict=True):
            total = max((-(-size // stride) - 1) * stride + (kernel - 1) * dilation + 1 - size, 0)
            before = -(-total // 2) if self.lower else total // 2
            found.append((before, total - before))
        return tuple(found)

    def gather(self, values: NDArray[np.generic], spots: Spots, zero: int) -> NDArray[np.generic]:
        """Give the inputs at some positions of the output, ``(groups, positions, columns)``.

        Args:
            values: The layer's whole input.
            spots: Index of each position, per axis of the output without channels.
            zero: What padding holds.
        """
        if not self.kernel:
            return np.ascontiguousarray(values[spots][None])
        rows, channels, sizes = len(values), values.shape[1], values.shape[2:]
        padding = self.padding(sizes)
        around = tuple(size + before + after for size, (before, after) in zip(sizes, padding, strict=True))
        inside = tuple(slice(before, before + size) for size, (before, _) in zip(sizes, padding, strict=True))
        places = self._places((rows, *around), spots)
        every = slice(None)
        if self.groups == channels:  # a channel's places side by side: they come out in the wanted order
            padded = np.full((channels, rows, *around), zero, values.dtype)
            padded[(every, every, *inside)] = np.moveaxis(values, 1, 0)
            return padded.reshape(channels, -1).take(places, axis=1)
        padded = np.full((rows, *around, channels), zero, values.dtype)
        padded[(every, *inside)] = np.moveaxis(values, 1, -1)
        taken = padded.reshape(-1, channels).take(places, axis=0).reshape(*places.shape, self.groups, -1)
        return np.ascontiguousarray(taken.transpose(2, 0, 3, 1)).reshape(self.groups, len(places), -1)

    def _places(self, around: tuple[int, ...], spots: Spots) -> NDArray[np.int64]:
        """Give where in padded rows each position's inputs lie, one number each, ``(positions, kernel places)``."""
        offsets = np.indices(self.kernel).reshape(len(self.kernel), -1)
        axes = (
            spot[:, None] * stride + offset * dilation
            for spot, stride, offset, dilation in zip(spots[1:], self.strides, offsets, self.dilations, strict=True)
        )
        whole = np.broadcast_arrays(spots[0][:, None], *axes)
        return np.asarray(np.ravel_multi_index(tuple(whole), around), dtype=np.int64)


def shape(node: NodeProto, weights: NDArray[np.generic]) -> Shape:
    """Read the attributes of a ``Conv``, ``Gemm`` or ``MatMul``."""
    if node.op_type != "Conv":
        return Shape(1, (), (), (), (), transposed=channel_axis(node) == 1)
    kernel = tuple(weights.shape[2:])
    axes = len(kernel)
    auto = (onnxfile.attribute(node, "auto_pad") or b"NOTSET").decode()
    pads = list(onnxfile.attribute(node, "pads") or [0] * 2 * axes)
    return Shape(
        groups=onnxfile.attribute(node, "group", 1),
        kernel=kernel,
        strides=tuple(onnxfile.attribute(node, "strides") or [1] * axes),
        dilations=tuple(onnxfile.attribute(node, "dilations") or [1] * axes),
        pads=None if auto.startswith("SAME") else tuple(zip(pads[:axes], pads[axes:], strict=True)),
        transposed=False,
        lower=auto == "SAME_LOWER",
    )


def at(values: NDArray[np.generic], spots: Spots, shape: Shape) -> NDArray[np.generic]:
    """Give a layer's outputs at some positions, ``(groups, positions, rows)``."""
    places: tuple[NDArray[np.int64] | slice, ...] = spots if not shape.kernel else (spots[0], slice(None), *spots[1:])
    taken = values[places]
    return taken.reshape(len(taken), shape.groups, -1).transpose(1, 0, 2)


def positions(
    output: tuple[int, ...],
    *,
    channels_last: bool,
    most: int,
    generator: np.random.Generator,
    real: NDArray[np.bool_] | None = None,
) -> Spots:
    """Draw positions of an output without repetition, in order; all of them when there are no more than `most`.

    Args:
        output: Sizes of the output's axes.
        channels_last: Whether channels are its last axis, not its second.
        most: How many to draw.
        generator: What draws.
        real: Which positions may be drawn, in the shape of the output without channels; all when None.
    """
    sizes = output[:-1] if channels_last else (output[0], *output[2:])
    able = np.arange(int(np.prod(sizes))) if real is None else np.flatnonzero(real)
    drawn = able if able.size <= most else np.sort(generator.choice(able, most, replace=False))
    return tuple(np.asarray(index, np.int64) for index in np.unravel_index(drawn, sizes))


@dataclass
class Moments:
    """Sums over positions, of a layer's input bytes less `MIDDLE` and of its wanted outputs.

    Attributes:
        count: Positions.
        inputs: Sum of the inputs, ``(g, k)``.
        outputs: Sum of the wanted outputs, ``(g, r)``.
        square: Sum of products of inputs with inputs, ``(g, k, k)``; whole numbers, exact in any order. None where
            only means are wanted.
        cross: Sum of products of outputs with inputs, ``(g, r, k)``, or None likewise.
    """

    count: int
    inputs: Reals
    outputs: Reals
    square: Reals | None = None
    cross: Reals | None = None

    @classmethod
    def empty(cls, groups: int, rows: int, columns: int, *, products: bool) -> Moments:
        """Begin with no positions."""
        sums = cls(0, np.zeros((groups, columns)), np.zeros((groups, rows)))
        if products:
            sums.square, sums.cross = np.zeros((groups, columns, columns)), np.zeros((groups, rows, columns))
        return sums

    def add(self, inputs: NDArray[np.uint8], wanted: NDArray[np.float32]) -> None:
        """Count inputs ``(g, n, k)`` and outputs ``(g, n, r)``."""
        for start in range(0, inputs.shape[1], CHUNK):
            some = np.subtract(inputs[:, start : start + CHUNK], MIDDLE, dtype=np.float32)
            goal = np.ascontiguousarray(wanted[:, start : start + CHUNK], dtype=np.float32)
            self.count += some.shape[1]
            self.inputs += some.sum(axis=1)
            self.outputs += goal.sum(axis=1, dtype=np.float64)
            if self.square is not None and self.cross is not None:
                self.square += np.swapaxes(some, 1, 2) @ some
                self.cross += np.swapaxes(goal, 1, 2) @ some

    def means(self, zero: int) -> tuple[Reals, Reals]:
        """Give the means of inputs less a zero point, ``(g, k)``, and of wanted outputs, ``(g, r)``."""
        count = max(self.count, 1)
        return self.inputs / count + (MIDDLE - zero), self.outputs / count

    def centred(self) -> tuple[Reals, Reals]:
        """Give square and cross with the means taken out, since a bias takes care of those."""
        assert self.square is not None
        assert self.cross is not None
        mean = self.inputs / max(self.count, 1)
        return (
            self.square - self.inputs[:, :, None] * mean[:, None, :],
            self.cross - self.outputs[:, :, None] * mean[:, None, :],
        )

    def about(self, zero: int) -> tuple[Reals, Reals]:
        """Give square and cross of inputs less a zero point, for a layer without a bias."""
        mean, _ = self.means(zero)
        square, cross = self.centred()
        return (
            square + self.count * mean[:, :, None] * mean[:, None, :],
            cross + self.outputs[:, :, None] * mean[:, None, :],
        )


@dataclass
class Held:
    """Positions kept as they are, to measure on: inputs as bytes ``(g, n, k)``, wanted outputs ``(g, n, r)``."""

    inputs: list[NDArray[np.uint8]] = field(default_factory=list)
    wanted: list[NDArray[np.float32]] = field(default_factory=list)

    def error(self, steps: Reals, scales: Reals, bias: Reals, zero: int) -> Reals:
        """Give each channel's mean squared error, ``(g, r)``.

        Args:
            steps: Integer weights, ``(g, r, k)``.
            scales: What a product of an input step and a weight step is worth, ``(g, r)``.
            bias: Real bias, ``(g, r)``.
            zero: The inputs' zero point.
        """
        total, count = np.zeros(scales.shape), 0
        turned = np.swapaxes(steps, 1, 2).astype(np.float32)
        offset = (bias - scales * zero * steps.sum(axis=2))[:, None, :]
        for inputs, wanted in zip(self.inputs, self.wanted, strict=True):
            for start in range(0, inputs.shape[1], CHUNK):
                got = inputs[:, start : start + CHUNK].astype(np.float32) @ turned
                gap = got * scales[:, None, :] + offset - wanted[:, start : start + CHUNK]
                total += np.einsum("gnr,gnr->gr", gap, gap)
                count += got.shape[1]
        return total / max(count, 1)

    def power(self) -> Reals:
        """Give each channel's mean square of the wanted outputs, ``(g, r)``."""
        count = sum(wanted.shape[1] for wanted in self.wanted)
        squares = [np.square(wanted, dtype=np.float64).sum(axis=1) for wanted in self.wanted]
        return np.asarray(sum(squares) / max(count, 1), dtype=np.float64)

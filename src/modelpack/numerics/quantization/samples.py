"""What a layer sees at some positions: its inputs there as integers, and what it should give.

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

CHUNK = 2048
"""Positions that are multiplied at once."""


@dataclass(frozen=True)
class Shape:
    """How a layer's weights and inputs fall into groups of rows and columns.

    Attributes:
        groups: Independent parts of a convolution; 1 elsewhere.
        kernel: Sizes of a convolution's kernel; empty for a matrix product.
        strides: Steps of the kernel, per axis.
        dilations: Distances inside the kernel, per axis.
        pads: Zeros before and after, per axis.
        transposed: Whether the weights have one column per output.
    """

    groups: int
    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[tuple[int, int], ...]
    transposed: bool

    def split(self, weights: NDArray[np.generic]) -> NDArray[np.generic]:
        """View weights as ``(groups, rows, columns)``."""
        flat = weights.T if self.transposed else weights.reshape(len(weights), -1)
        return flat.reshape(self.groups, -1, flat.shape[1])

    def join(self, split: NDArray[np.generic], like: NDArray[np.generic]) -> NDArray[np.generic]:
        """Undo `split`."""
        flat = split.reshape(-1, split.shape[2])
        return np.ascontiguousarray(flat.T if self.transposed else flat.reshape(like.shape))

    def gather(
        self, values: NDArray[np.generic], spots: tuple[NDArray[np.int64], ...], zero: int
    ) -> NDArray[np.generic]:
        """Give the inputs at some positions of the output, ``(groups, positions, columns)``.

        Args:
            values: The layer's whole input.
            spots: Index of each position, per axis of the output without channels.
            zero: What padding holds.
        """
        if not self.kernel:
            return np.ascontiguousarray(values[spots][None])
        padded = np.pad(values, ((0, 0), (0, 0), *self.pads), constant_values=zero)
        taken = np.empty((len(spots[0]), values.shape[1], int(np.prod(self.kernel))), values.dtype)
        for number, offset in enumerate(np.ndindex(*self.kernel)):
            places = (
                spot * stride + step * dilation
                for spot, stride, step, dilation in zip(spots[1:], self.strides, offset, self.dilations, strict=True)
            )
            taken[:, :, number] = padded[(spots[0], slice(None), *places)]
        return np.ascontiguousarray(taken.reshape(len(taken), self.groups, -1).transpose(1, 0, 2))


def shape(node: NodeProto, weights: NDArray[np.generic]) -> Shape | None:
    """Read a layer's attributes; None for padding that depends on the input's size."""
    if node.op_type != "Conv":
        return Shape(1, (), (), (), (), transposed=channel_axis(node) == 1)
    if (onnxfile.attribute(node, "auto_pad") or b"NOTSET") not in (b"NOTSET", b"VALID"):
        return None
    kernel = tuple(weights.shape[2:])
    axes = len(kernel)
    pads = list(onnxfile.attribute(node, "pads") or [0] * 2 * axes)
    return Shape(
        groups=onnxfile.attribute(node, "group", 1),
        kernel=kernel,
        strides=tuple(onnxfile.attribute(node, "strides") or [1] * axes),
        dilations=tuple(onnxfile.attribute(node, "dilations") or [1] * axes),
        pads=tuple(zip(pads[:axes], pads[axes:], strict=True)),
        transposed=False,
    )


def at(values: NDArray[np.generic], spots: tuple[NDArray[np.int64], ...], shape: Shape) -> NDArray[np.generic]:
    """Give a layer's outputs at some positions, ``(groups, positions, rows)``."""
    places: tuple[NDArray[np.int64] | slice, ...] = spots if not shape.kernel else (spots[0], slice(None), *spots[1:])
    taken = values[places]
    return taken.reshape(len(taken), shape.groups, -1).transpose(1, 0, 2)


def positions(
    output: tuple[int, ...], *, channels_last: bool, most: int, generator: np.random.Generator
) -> tuple[NDArray[np.int64], ...]:
    """Draw positions of an output without repetition, in order; all of them when there are no more than `most`."""
    sizes = output[:-1] if channels_last else (output[0], *output[2:])
    total = int(np.prod(sizes))
    drawn = np.arange(total) if total <= most else np.sort(generator.choice(total, most, replace=False))
    return tuple(np.asarray(index, np.int64) for index in np.unravel_index(drawn, sizes))


@dataclass
class Moments:
    """Sums over positions, of a layer's integer inputs and its wanted outputs.

    Attributes:
        count: Positions.
        inputs: Sum of the inputs, ``(g, k)``.
        outputs: Sum of the wanted outputs, ``(g, r)``.
        square: Sum of products of inputs with inputs, ``(g, k, k)``; whole numbers, hence exact in any order.
        cross: Sum of products of outputs with inputs, ``(g, r, k)``.
    """

    count: int
    inputs: NDArray[np.float64]
    outputs: NDArray[np.float64]
    square: NDArray[np.float64]
    cross: NDArray[np.float64]

    @classmethod
    def empty(cls, groups: int, rows: int, columns: int) -> Moments:
        """Begin with no positions."""
        sizes = ((groups, columns), (groups, rows), (groups, columns, columns), (groups, rows, columns))
        return cls(0, *(np.zeros(size) for size in sizes))

    def add(self, inputs: NDArray[np.generic], wanted: NDArray[np.generic]) -> None:
        """Count inputs ``(g, n, k)`` and outputs ``(g, n, r)``."""
        for start in range(0, inputs.shape[1], CHUNK):
            some = inputs[:, start : start + CHUNK].astype(np.float64)
            goal = wanted[:, start : start + CHUNK].astype(np.float64)
            self.count += some.shape[1]
            self.inputs += some.sum(axis=1)
            self.outputs += goal.sum(axis=1)
            self.square += np.swapaxes(some, 1, 2) @ some
            self.cross += np.swapaxes(goal, 1, 2) @ some

    def centred(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Give square and cross with the means taken out, since a bias takes care of those."""
        mean = self.inputs / max(self.count, 1)
        return (
            self.square - self.inputs[:, :, None] * mean[:, None, :],
            self.cross - self.outputs[:, :, None] * mean[:, None, :],
        )


@dataclass
class Held:
    """Positions kept as they are, to measure on."""

    inputs: list[NDArray[np.generic]] = field(default_factory=list)
    wanted: list[NDArray[np.generic]] = field(default_factory=list)

    def error(
        self, steps: NDArray[np.float64], scales: NDArray[np.float64], bias: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Give each channel's mean squared error, ``(g, r)``.

        Args:
            steps: Integer weights, ``(g, r, k)``.
            scales: What a product of an input step and a weight step is worth, ``(g, r)``.
            bias: Real bias, ``(g, r)``.
        """
        total, count = np.zeros(scales.shape), 0
        turned = np.swapaxes(steps, 1, 2).astype(np.float32)
        for inputs, wanted in zip(self.inputs, self.wanted, strict=True):
            for start in range(0, inputs.shape[1], CHUNK):
                got = inputs[:, start : start + CHUNK].astype(np.float32) @ turned
                got = got.astype(np.float64) * scales[:, None, :] + bias[:, None, :]
                total += np.square(got - wanted[:, start : start + CHUNK].astype(np.float64)).sum(axis=1)
                count += got.shape[1]
        return total / max(count, 1)

    def power(self) -> NDArray[np.float64]:
        """Give each channel's mean square of the wanted outputs, ``(g, r)``."""
        count = sum(wanted.shape[1] for wanted in self.wanted)
        squares = [np.square(wanted.astype(np.float64)).sum(axis=1) for wanted in self.wanted]
        return np.asarray(sum(squares) / max(count, 1), dtype=np.float64)

"""A layer in the float graph and in the quantized one: its constants, what it sees and what it should give."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from onnx import TensorProto, numpy_helper

from modelpack.numerics import onnxfile
from modelpack.numerics.grid import BIAS_LIMIT
from modelpack.numerics.quantization.correction import samples

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from onnx import ModelProto, NodeProto

    from modelpack.numerics.quantization.correction.samples import Shape, Spots

    Reals = NDArray[np.float64]

WIDEST = 8192
"""Inputs of one output above which only the bias is fitted: the moments would take over half a gigabyte."""

FITTED = ("Conv", "Gemm", "MatMul")
"""Operators whose constants can be fitted."""

KEPT_OUT = 4
"""One row in this many is measured on instead of fitted to."""


def kept_out(rows: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Say which rows are measured on, by their number."""
    return np.asarray(rows % KEPT_OUT == KEPT_OUT - 1)


@dataclass(frozen=True)
class Bias:
    """A bias in the quantized graph: 32-bit integers of a layer, or floats that are added to a matrix product.

    Attributes:
        tensor: The constant.
        steps: What one integer is worth, per channel; None for floats.
        base: Its part that the float layer's own output lacks, per channel: what is added after a matrix product.
    """

    tensor: TensorProto
    steps: Reals | None
    base: Reals

    def real(self) -> Reals:
        """Give its values without `base`, ``(channels,)``."""
        held = onnxfile.array(self.tensor).astype(np.float64).reshape(-1)
        return (held if self.steps is None else held * self.steps) - self.base

    def settled(self, wanted: Reals) -> Reals:
        """Give the nearest values that it can hold; where 32 bits do not suffice, those that it has."""
        if self.steps is None:
            return (wanted + self.base).astype(np.float32).astype(np.float64) - self.base
        counted = np.rint(wanted / self.steps)
        return np.where(np.abs(counted) <= BIAS_LIMIT, counted * self.steps, self.real())

    def write(self, values: Reals) -> None:
        """Put values without `base` into the graph."""
        whole = values + self.base
        held = whole.astype(np.float32) if self.steps is None else np.rint(whole / self.steps).astype(np.int32)
        shaped = held.reshape(tuple(self.tensor.dims))
        self.tensor.CopyFrom(numpy_helper.from_array(shaped, self.tensor.name))


class Graph:
    """The quantized graph beside the float one, with what is looked up in both again and again."""

    def __init__(self, model: ModelProto, twin: ModelProto) -> None:
        """Index both graphs."""
        self.floats = {node.name: (place, node) for place, node in enumerate(model.graph.node)}
        self.bytes = {node.name: (place, node) for place, node in enumerate(twin.graph.node)}
        self.weights = onnxfile.constants(model.graph)
        self.tensors = {item.name: item for item in twin.graph.initializer}
        self.makers = onnxfile.producers(twin.graph)
        self.readers = onnxfile.consumers(twin.graph)

    def array(self, name: str) -> NDArray[np.generic]:
        """Give a constant of the quantized graph."""
        return onnxfile.array(self.tensors[name])

    def rounder(self, name: str) -> NodeProto | None:
        """Give the ``DequantizeLinear`` that makes a value; None when something else does."""
        node = self.makers.get(name)
        return node if node is not None and node.op_type == "DequantizeLinear" else None


class Subject:
    """A quantized layer.

    Attributes:
        name: The node's name in both graphs.
        place: Its position in the quantized graph.
        float_place: Its position in the float graph.
        source: Name of its input's bytes in the quantized graph.
        float_source: Name of its input in the float graph.
        goal: Name of its output in the float graph.
        input_scale: Scale of its input.
        zero: Zero point of its input, counted from the smallest byte.
        scales: Scale of each channel's weights, ``(g, r)``.
        weights: The float weights, ``(g, r, k)``.
        bias: Its bias; None when it has none.
        fixed: Why its weights cannot be fitted; empty when they can.
    """

    def __init__(self, name: str, graph: Graph) -> None:
        """Read a layer whose input and weights are rounded (see `obstacle`)."""
        self.name = name
        self.float_place, other = graph.floats[name]
        self.place, node = graph.bytes[name]
        self.float_source, self.goal = other.input[0], other.output[0]
        given, held = graph.rounder(node.input[0]), graph.rounder(node.input[1])
        assert given is not None
        assert held is not None
        self.source = given.input[0]
        self.input_scale, zero = float(graph.array(given.input[1])), graph.array(given.input[2])
        self.zero = int(_unsigned(zero))
        values = onnxfile.array(graph.weights[other.input[1]])
        self.shape: Shape = samples.shape(other, values)
        self.weights = np.asarray(self.shape.split(values), dtype=np.float64)
        self.table: TensorProto = graph.tensors[held.input[0]]
        self.scales = graph.array(held.input[1]).astype(np.float64).reshape(self.weights.shape[:2])
        self.bias = _bias(node, graph, self.scales.size)
        shared = len(graph.readers[held.output[0]]) + len(graph.readers[held.input[0]]) > 2
        self.fixed = "other layers share its weights" if shared else ""
        if not self.fixed and self.weights.shape[2] > WIDEST:
            self.fixed = f"{self.weights.shape[2]:,} inputs of one output are more than {WIDEST:,}"
        self.forget()

    def forget(self) -> None:
        """Free what was gathered."""
        self.fit: samples.Moments | None = None
        self.held = samples.Held()

    def steps(self) -> Reals:
        """Give the integer weights, ``(g, r, k)``."""
        return np.asarray(self.shape.split(onnxfile.array(self.table)), dtype=np.float64)

    def see(
        self, given: NDArray[np.uint8], goal: NDArray[np.float32], spots: Spots, *, products: bool, seen: int
    ) -> None:
        """Take positions of one batch: some rows (see `kept_out`) are kept out of the fit.

        Args:
            given: The layer's whole input, as bytes.
            goal: The float layer's whole output.
            spots: Index of each position, per axis of the output without channels.
            products: Whether moments of products are wanted.
            seen: Rows in the batches before.
        """
        if self.fit is None:
            self.fit = samples.Moments.empty(*self.weights.shape, products=products)
        inputs = self.shape.gather(_unsigned(given), spots, self.zero).astype(np.uint8, copy=False)
        wanted = samples.at(goal, spots, self.shape).astype(np.float32, copy=False)
        out = kept_out(spots[0] + seen)
        self.fit.add(inputs[:, ~out], wanted[:, ~out])
        self.held.inputs.append(inputs[:, out])
        self.held.wanted.append(np.ascontiguousarray(wanted[:, out]))

    def bounds(self) -> tuple[Reals | int, Reals | int]:
        """Give the smallest and largest integer weight: some processors want fewer than 8 bits of them."""
        most = max(int(np.abs(self.steps()).max(initial=0.0)), 1)
        return -most, most

    def error(self, steps: Reals, bias: Reals) -> Reals:
        """Measure the mean squared error of each channel, ``(g, r)``, with other constants."""
        return self.held.error(steps, self.scales * self.input_scale, bias.reshape(self.scales.shape), self.zero)

    def write(self, steps: Reals, bias: Reals) -> None:
        """Put constants into the graph."""
        if not self.fixed:
            old = onnxfile.array(self.table)
            made = self.shape.join(steps.astype(np.int8), old)
            self.table.CopyFrom(numpy_helper.from_array(made, self.table.name))
        if self.bias is not None:
            self.bias.write(bias)


def obstacle(name: str, graph: Graph) -> str:
    """Say why a layer cannot be fitted at all; empty when it can."""
    if name not in graph.floats or name not in graph.bytes:
        return "it is not in both graphs under this name"
    _, node = graph.bytes[name]
    if node.op_type not in FITTED:
        return f"{node.op_type} is not among {', '.join(FITTED)}"
    given, held = graph.rounder(node.input[0]), graph.rounder(node.input[1])
    if given is None or held is None:
        return "its input or its weights are not rounded"
    if graph.array(given.input[2]).dtype.itemsize > 1:
        return "its input takes 16 bits"
    return "" if held.input[0] in graph.tensors else "its weights are computed"


def _unsigned(values: NDArray[np.generic]) -> NDArray[np.generic]:
    """Count bytes from the smallest on: signed ones as if they were unsigned."""
    return values.view(np.uint8) ^ np.uint8(0x80) if values.dtype == np.int8 else values


def _bias(node: NodeProto, graph: Graph, channels: int) -> Bias | None:
    """Find a layer's bias, or what alone is added to a matrix product; None without either."""
    if len(node.input) > 2 and node.input[2]:
        rounder = graph.rounder(node.input[2])
        if rounder is None or len(graph.readers[rounder.output[0]]) > 1:
            return None
        steps = graph.array(rounder.input[1]).astype(np.float64)
        return Bias(graph.tensors[rounder.input[0]], steps, np.zeros(channels))
    after = graph.readers.get(node.output[0], [])
    if node.op_type != "MatMul" or len(after) != 1 or after[0].op_type != "Add":
        return None
    added = next((name for name in after[0].input if name != node.output[0]), "")
    tensor = graph.tensors.get(added)
    if tensor is None or list(tensor.dims) != [channels] or len(graph.readers[added]) > 1:
        return None
    return Bias(tensor, None, onnxfile.array(tensor).astype(np.float64))

"""The layers of a graph as they are stored: how many bits each weight has, and what its activations are rounded to.

It reads graphs of any tool: QDQ pairs around float operators, operators on integers (``QLinearConv``,
``MatMulInteger``, onnxruntime's own), weights in blocks, weights rounded at every run.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from onnx import GraphProto, ModelProto, NodeProto, TensorProto

from modelpack.numerics import onnxfile

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

INTEGER: Mapping[str, tuple[int, int, int | None, int | None]] = {
    "QLinearConv": (0, 3, 1, 4),
    "QLinearMatMul": (0, 3, 1, 4),
    "QGemm": (0, 3, 1, 4),
    "ConvInteger": (0, 1, None, None),
    "MatMulInteger": (0, 1, None, None),
    "MatMulIntegerToFloat": (0, 1, 2, 3),
    "DynamicQuantizeMatMul": (0, 1, None, 2),
    "MatMulNBits": (0, 1, None, 2),
}
"""Operator on integers → positions of activations, weights, and of their scales."""

FLOATING = ("Conv", "FusedConv", "ConvTranspose", "Gemm", "FusedGemm", "MatMul", "FusedMatMul")
"""Operators on floats that multiply by weights; QDQ pairs around the standard ones make them integer."""

_BITS: Mapping[str, int] = {
    **dict.fromkeys(("DOUBLE", "INT64", "UINT64"), 64),
    **dict.fromkeys(("FLOAT16", "BFLOAT16", "INT16", "UINT16"), 16),
    **dict.fromkeys(("UINT8", "INT8", "BOOL", "FLOAT8E4M3FN", "FLOAT8E5M2"), 8),
    **dict.fromkeys(("UINT4", "INT4", "FLOAT4E2M1"), 4),
    **dict.fromkeys(("UINT2", "INT2"), 2),
}
_FORM_ONLY = ("Identity", "Transpose", "Reshape", "Cast", "Squeeze", "Unsqueeze", "Flatten")


@dataclass(frozen=True)
class Origin:
    """Where a value comes from, through the nodes that only change its form or precision.

    Attributes:
        tensor: The constant it is in the end; None for one that is computed.
        kind: Element type it was last rounded to; empty where it was not rounded.
        scale: The scale of that rounding, when it is a constant.
        zero: Its zero point, when it is a constant.
    """

    tensor: TensorProto | None
    kind: str = ""
    scale: TensorProto | None = None
    zero: TensorProto | None = None


@dataclass(frozen=True)
class Layer:
    """A node that multiplies by constant weights.

    Attributes:
        node: The node.
        name: Its name, or that of its first output.
        weights: The weights as they are stored.
        elements: How many there are.
        kind: Element type that they are rounded to, stored so or not.
        scale: Scales of the weights, when known.
        zero: Their zero points, when known.
        activations: Element type that its input is rounded to; empty for floats.
    """

    node: NodeProto
    name: str
    weights: TensorProto
    elements: int
    kind: str
    scale: TensorProto | None
    zero: TensorProto | None
    activations: str

    @property
    def operator(self) -> str:
        """The operator."""
        return str(self.node.op_type)

    @property
    def reduced(self) -> bool:
        """Whether a weight takes less than 32 bits."""
        return bits(self.kind) < 32

    @property
    def dequantized(self) -> bool:
        """Whether an operator on floats reads weights of a byte or less."""
        return self.operator in FLOATING and bits(self.kind) <= 8


def kind_of(tensor: TensorProto) -> str:
    """Name a constant's element type as ONNX does."""
    return str(TensorProto.DataType.Name(tensor.data_type))


def bits(kind: str) -> int:
    """Give the bits of an element type."""
    return _BITS.get(kind, 32)


def nbytes(tensor: TensorProto) -> int:
    """Give the bytes of a constant's values."""
    return math.ceil(int(math.prod(tensor.dims)) * bits(kind_of(tensor)) / 8)


class Reader:
    """Follows values back through one graph."""

    def __init__(self, model: ModelProto) -> None:
        """Index the graph and the graphs inside its nodes; the innermost of equal names counts."""
        self.constants: dict[str, TensorProto] = {}
        self.makers: dict[str, NodeProto] = {}
        for graph in onnxfile.graphs(model.graph):
            self.constants |= {item.name: item for item in graph.initializer}
            self.makers |= onnxfile.producers(graph)
            self.constants |= dict(_values(graph))

    def constant(self, node: NodeProto, position: int | None) -> TensorProto | None:
        """Give the constant that a node reads at a position."""
        if position is None or len(node.input) <= position:
            return None
        return self.constants.get(node.input[position])

    def origin(self, name: str) -> Origin:
        """Follow a value back."""
        kind, scale, zero, scaled = "", None, None, False
        for _ in range(len(self.makers) + 1):
            tensor, node = self.constants.get(name), self.makers.get(name)
            if node is None and tensor is None and scaled:
                return Origin(None)  # a computed value times a constant, no rounded weights
            if tensor is not None or node is None:
                return Origin(tensor, kind or (kind_of(tensor) if tensor is not None else ""), scale, zero)
            if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
                scale, zero = scale or self.constant(node, 1), zero or self.constant(node, 2)
                kind = kind or self._rounded_to(node)
            elif node.op_type == "Mul" and not kind and (steps := self._steps(node)) is not None:
                scaled, scale, name = True, steps[0], steps[1]
                continue
            elif node.op_type not in _FORM_ONLY:
                return Origin(None) if scaled else Origin(None, kind, scale, zero)
            name = node.input[0]
        return Origin(None)

    def _steps(self, node: NodeProto) -> tuple[TensorProto, str] | None:
        """Split a product into its constant and the name of what it is multiplied with."""
        one, two = node.input
        if one in self.constants:
            return self.constants[one], two
        return (self.constants[two], one) if two in self.constants else None

    def _rounded_to(self, node: NodeProto) -> str:
        """Name the integers of a ``QuantizeLinear`` or ``DequantizeLinear``, empty where only its maker knows them."""
        zero = self.constant(node, 2)
        if zero is not None:
            return kind_of(zero)
        given = self.constant(node, 0) if node.op_type == "DequantizeLinear" else None
        if given is not None:
            return kind_of(given)
        if node.op_type == "DequantizeLinear":
            return ""
        declared = onnxfile.attribute(node, "output_dtype", 0)
        return str(TensorProto.DataType.Name(declared)) if declared else "UINT8"


def _values(graph: GraphProto) -> Iterator[tuple[str, TensorProto]]:
    for node in graph.node:
        value = onnxfile.attribute(node, "value") if node.op_type == "Constant" else None
        if isinstance(value, TensorProto):
            yield node.output[0], value


def layers(model: ModelProto) -> list[Layer]:
    """List the layers, in the order of the nodes."""
    reader = Reader(model)
    nodes = [node for graph in onnxfile.graphs(model.graph) for node in graph.node]
    return [layer for node in nodes if (layer := _layer(node, reader)) is not None]


def _layer(node: NodeProto, reader: Reader) -> Layer | None:
    if node.op_type in INTEGER:
        source, place, _, scale_at = INTEGER[node.op_type]
        weights = reader.constant(node, place)
        if weights is None:
            return None
        scale, zero = reader.constant(node, scale_at), _zero(node, reader)
        found = Origin(weights, kind_of(weights), scale, zero)
        activations = _taken(node, source, reader)
    elif node.op_type in FLOATING and len(node.input) > 1:
        found, activations = reader.origin(node.input[1]), reader.origin(node.input[0]).kind
    else:
        return None
    if found.tensor is None:
        return None
    elements, kind = math.prod(found.tensor.dims), found.kind
    if node.op_type == "MatMulNBits":
        elements = onnxfile.attribute(node, "K", 0) * onnxfile.attribute(node, "N", 0)
        kind = f"UINT{onnxfile.attribute(node, 'bits', 4)}"
    name = node.name or node.output[0]
    return Layer(node, name, found.tensor, elements, kind, found.scale, found.zero, activations)


def _zero(node: NodeProto, reader: Reader) -> TensorProto | None:
    places = {"QLinearConv": 5, "QLinearMatMul": 5, "QGemm": 5, "ConvInteger": 3, "MatMulInteger": 3}
    places |= {"MatMulIntegerToFloat": 5, "DynamicQuantizeMatMul": 3}
    return reader.constant(node, places.get(node.op_type))


def _taken(node: NodeProto, source: int, reader: Reader) -> str:
    """Name the integers that an operator on integers takes."""
    if node.op_type == "MatMulNBits":
        return ""
    places = {"QLinearConv": 2, "QLinearMatMul": 2, "QGemm": 2, "ConvInteger": 2, "MatMulInteger": 2}
    zero = reader.constant(node, places.get(node.op_type))
    return kind_of(zero) if zero is not None else reader.origin(node.input[source]).kind or "UINT8"

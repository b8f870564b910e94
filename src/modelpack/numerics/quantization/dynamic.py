"""Dynamic quantization: weights as signed bytes, activations rounded at run time to the range that they have then.

No data are needed. A row's result depends a little on the rows beside it, since they share one range.

A matrix product becomes ``DynamicQuantizeLinear → MatMulInteger → Cast → Mul``, which onnxruntime fuses into one
kernel; weights have a scale per column.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper

from modelpack.numerics import grid, onnxfile
from modelpack.numerics.quantization import embedding
from modelpack.numerics.quantization.layers import channel_axis
from modelpack.numerics.quantization.settings import Outcome
from modelpack.numerics.quantization.tables import Tables

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from modelpack.numerics.quantization.layers import Layer
    from modelpack.numerics.quantization.settings import Evidence, Settings


def quantize(model: ModelProto, found: Sequence[Layer], _settings: Settings, _evidence: Evidence) -> Outcome:
    """Rewrite the chosen layers of a prepared graph, embeddings included; the given one stays as it is."""
    chosen = [layer for layer in found if layer.quantized]
    model = embedding.quantize(model, [layer.name for layer in chosen if layer.operator == "Gather"])
    return Outcome(rewritten(model, [layer.name for layer in chosen if layer.operator != "Gather"]))


def rewritten(model: ModelProto, chosen: Iterable[str]) -> ModelProto:
    """Rewrite the chosen layers.

    Args:
        model: A prepared graph.
        chosen: Names of layers: ``MatMul`` or ``Gemm`` with constant float32 weights.

    Returns:
        A new model; the given one stays as it is.
    """
    twin = onnxfile.copied(model)
    layers, tables = frozenset(chosen), Tables(twin.graph)
    writer = _Writer(twin.graph, tables)
    nodes: list[NodeProto] = []
    for node in twin.graph.node:
        if node.name not in layers:
            nodes.append(node)
        else:
            nodes += writer.product(node)
    tables.finish(nodes)
    return twin


class _Writer:
    """Makes the nodes that replace a layer; constants and rounded activations are shared."""

    def __init__(self, graph: GraphProto, tables: Tables) -> None:
        self.tensors, self.tables = onnxfile.constants(graph), tables
        self.rounded: set[str] = set()

    def product(self, node: NodeProto) -> list[NodeProto]:
        """Multiply bytes, then scale, then add the bias that a ``Gemm`` may have."""
        weights = node.input[1]
        values = onnxfile.array(self.tensors[weights]).astype(np.float32)
        turned = channel_axis(node) == 0
        # A product needs the weights with one column per output; a transposed Gemm holds one row.
        values, stem = (values.T, f"{weights}:turned") if turned else (values, f"{weights}:columns")
        scales = grid.symmetric_scales(values, 1)
        table = self.tables.constant(f"{stem}:quantized", grid.to_int8(values, scales, 1))
        zero = self.tables.constant(f"{stem}:zero", np.zeros(scales.shape, np.int8))
        steps = self.tables.constant(f"{stem}:scale", scales)
        source, name = node.input[0], node.name
        has_bias = len(node.input) > 2 and bool(node.input[2])
        scaled = f"{name}:product" if has_bias else node.output[0]
        nodes = [] if source in self.rounded else [self._round(source)]
        nodes += [
            helper.make_node(
                "MatMulInteger",
                [f"{source}:bytes", table, f"{source}:zero", zero],
                [f"{name}:integer"],
                name=f"{name}:integer",
            ),
            helper.make_node("Cast", [f"{name}:integer"], [f"{name}:cast"], name=f"{name}:cast", to=TensorProto.FLOAT),
            helper.make_node("Mul", [f"{source}:scale", steps], [f"{name}:scale"], name=f"{name}:scale"),
            helper.make_node("Mul", [f"{name}:cast", f"{name}:scale"], [scaled], name=name),
        ]
        if has_bias:
            bias = helper.make_node("Add", [scaled, node.input[2]], list(node.output), name=f"{name}:bias")
            nodes.append(bias)
        return nodes

    def _round(self, source: str) -> NodeProto:
        self.rounded.add(source)
        outputs = [f"{source}:bytes", f"{source}:scale", f"{source}:zero"]
        return helper.make_node("DynamicQuantizeLinear", [source], outputs, name=f"{source}:bytes")

"""Float layers between bytes, kept float: onnxruntime rounds their weights by itself where it can.

A ``Conv``, ``ConvTranspose`` or ``Gemm`` that reads a ``DequantizeLinear`` and leads, with nothing but ReLUs and clips
between, to one ``QuantizeLinear``, is given int8 weights with one scale for the whole tensor when the model is loaded,
at every level of optimization but none (its WeightBiasQuantization). That undoes what the layer was left in float for:
on EfficientNet-Lite0 the first depthwise convolution, left in float alone, took the model from 18.8 dB to 7.4. A
``LeakyRelu`` with slope 1 behind the layer changes no value, is not looked through, and costs next to nothing, since
float kernels take it up as their activation.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnx import helper

from modelpack.numerics import onnxfile

if TYPE_CHECKING:
    from onnx import GraphProto, NodeProto

LAYERS = frozenset({"Conv", "ConvTranspose", "Gemm"})
"""Operators whose weights onnxruntime rounds by itself."""

_PASSED = frozenset({"Relu", "Clip"})


def shield(graph: GraphProto) -> None:
    """Put an identity that stays behind every float layer that would be rounded. Changes `graph`."""
    makers, readers = onnxfile.producers(graph), onnxfile.consumers(graph)
    fixed, given = onnxfile.constants(graph), {item.name for item in graph.output}
    nodes: list[NodeProto] = []
    for node in graph.node:
        nodes.append(node)
        maker = makers.get(node.input[0]) if node.op_type in LAYERS else None
        if maker is None or maker.op_type != "DequantizeLinear" or node.input[1] not in fixed:
            continue
        if _leads_to_bytes(node, readers, given):
            value = node.output[0]
            node.output[0] = f"{value}:layer"
            identity = f"{node.name}:identity"
            nodes.append(helper.make_node("LeakyRelu", [node.output[0]], [value], name=identity, alpha=1.0))
    onnxfile.replace_nodes(graph, nodes)


def _leads_to_bytes(node: NodeProto, readers: dict[str, list[NodeProto]], given: set[str]) -> bool:
    """Whether a node's value is read once, through ReLUs and clips, to be rounded."""
    while node.output[0] not in given:
        after = readers.get(node.output[0], [])
        if len(after) != 1:
            return False
        (node,) = after
        if node.op_type == "QuantizeLinear":
            return True
        if node.op_type not in _PASSED:
            return False
    return False

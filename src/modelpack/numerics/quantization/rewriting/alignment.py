"""Convolutions of a few channels, three for most pictures, padded to a number that integer kernels read in place.

A channel that holds the zero point changes no sum. Without it onnxruntime copies every patch of the picture into a
matrix before it multiplies (``onnxruntime/core/mlas/lib/convsym.cpp``, ``MlasConvSymPackWSize``).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from modelpack.numerics import onnxfile

if TYPE_CHECKING:
    from collections.abc import Mapping

FEWEST = 16
"""Output channels below which the kernel that reads in place is not used."""

LARGEST = 25
"""Places of a kernel above which copying costs less than multiplying by the padding: measured on one processor."""


def aligned(model: ModelProto, multiple: int) -> ModelProto:
    """Pad the channels of quantized inputs of the graph that only convolutions read.

    Args:
        model: A quantized graph; it stays as it is.
        multiple: What the channels become a multiple of.

    Returns:
        A new model, with the same outputs.
    """
    twin = onnxfile.copied(model)
    makers, readers = onnxfile.producers(twin.graph), onnxfile.consumers(twin.graph)
    tensors = {item.name: item for item in twin.graph.initializer}
    given = {item.name for item in twin.graph.input}
    nodes: list[NodeProto] = []
    for node in twin.graph.node:
        rounder = makers.get(node.input[0]) if node.op_type == "DequantizeLinear" else None
        if rounder is not None and _rounds_to_bytes(rounder, tensors) and rounder.input[0] in given:
            weights = [_weights(reader, makers, readers, tensors) for reader in readers.get(node.output[0], [])]
            found = [tensor for tensor in weights if tensor is not None and _pays(tensor)]
            missing = -found[0].dims[1] % multiple if found and len(found) == len(weights) else 0
            if missing:
                nodes.append(_padding(twin, node, missing, len(found[0].dims)))
                for tensor in found:
                    _widen(tensor, missing)
        nodes.append(node)
    onnxfile.replace_nodes(twin.graph, nodes)
    return twin


def _rounds_to_bytes(node: NodeProto, tensors: Mapping[str, TensorProto]) -> bool:
    """Leave 16-bit activations out: onnxruntime cannot pad them, and multiplies them in float32."""
    zero = tensors.get(node.input[2]) if node.op_type == "QuantizeLinear" else None
    return zero is not None and zero.data_type in (TensorProto.UINT8, TensorProto.INT8)


def _weights(
    node: NodeProto,
    makers: Mapping[str, NodeProto],
    readers: Mapping[str, list[NodeProto]],
    tensors: Mapping[str, TensorProto],
) -> TensorProto | None:
    """Give a convolution's quantized weights, unless it has groups or shares them."""
    if node.op_type != "Conv" or onnxfile.attribute(node, "group", 1) != 1:
        return None
    maker = makers.get(node.input[1])
    if maker is None or len(readers[maker.output[0]]) + len(readers[maker.input[0]]) > 2:
        return None
    return tensors.get(maker.input[0])


def _pays(tensor: TensorProto) -> bool:
    outputs, _, *kernel = tensor.dims
    return int(outputs) >= FEWEST and math.prod(kernel) <= LARGEST


def _padding(model: ModelProto, node: NodeProto, missing: int, axes: int) -> NodeProto:
    """Put channels of the zero point behind the others, in front of a ``DequantizeLinear``."""
    source, sizes = node.input[0], f"{node.input[0]}:channels"
    after = [0, missing, *[0] * (axes - 2)]
    model.graph.initializer.append(numpy_helper.from_array(np.array([0] * axes + after, np.int64), sizes))
    node.input[0] = f"{source}:padded"
    return helper.make_node("Pad", [source, sizes, node.input[2]], [node.input[0]], name=f"{source}/Pad")


def _widen(tensor: TensorProto, missing: int) -> None:
    values = onnxfile.array(tensor)
    sides = [(0, missing if axis == 1 else 0) for axis in range(values.ndim)]
    tensor.CopyFrom(numpy_helper.from_array(np.pad(values, sides), tensor.name))

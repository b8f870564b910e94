"""Which operators onnxruntime's CPU provider computes on bytes, between tensors that are marked.

Read in its sources (folder ``onnxruntime/core/optimizer/qdq_transformer/selectors_actions``), and seen in the graphs
that release 1.31 optimized. Left out although there are kernels: ``Softmax``, whose output is too coarse in 8 bits, and
products of two activations, which are no faster than float ones there.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from modelpack.numerics import onnxfile

if TYPE_CHECKING:
    from collections.abc import Mapping

    from onnx import NodeProto, TensorProto

NEIGHBOURS = frozenset(
    {"Add", "Mul", "Concat", "AveragePool", "GlobalAveragePool", "Sigmoid", "HardSigmoid", "LeakyRelu", "Where"}
)
"""Operators with integer kernels of their own, or parts that have (`rewriting.composites`)."""

CARRIERS = frozenset(
    {"MaxPool", "ReduceMax", "ReduceMin", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Slice", "Split",
     "Gather", "GatherElements", "Expand", "Tile", "DepthToSpace", "Resize"}
)  # fmt: skip
"""Operators that only move values: their outputs are on the grid of their first input."""

PRODUCTS = frozenset({"Conv", "Gemm", "MatMul"})
"""Layers with integer kernels; others may have 8-bit weights, which are unpacked before they multiply."""

WITH_NUMBERS = frozenset({"Add", "Mul"})
"""Neighbours whose other input may be a constant of one element."""

_ABSORBED = frozenset({"Relu", "Clip"})


def values(node: NodeProto) -> list[str]:
    """List the inputs of a neighbour or carrier that hold activations or take their place."""
    if node.op_type in CARRIERS:
        return list(node.input[:1])
    return list(node.input[1:] if node.op_type == "Where" else node.input)


def is_number(name: str, fixed: Mapping[str, TensorProto]) -> bool:
    """Whether an input is a constant of one element, which some grid holds exactly."""
    return name in fixed and math.prod(fixed[name].dims) == 1


def passes_bytes(node: NodeProto, ready: Mapping[str, str], fixed: Mapping[str, TensorProto]) -> bool:
    """Whether a node can compute on bytes.

    Args:
        node: Any node.
        ready: The tensors that are there as bytes.
        fixed: The graph's constants.
    """
    if node.op_type in CARRIERS:
        if node.op_type == "Resize" and (onnxfile.attribute(node, "mode") or b"nearest") != b"nearest":
            return False
        alone = node.op_type == "Split" or len([name for name in node.output if name]) == 1
        return node.input[0] in ready and alone
    if node.op_type not in NEIGHBOURS:
        return False
    taken = [name for name in values(node) if name not in ready]
    numbers = node.op_type in WITH_NUMBERS and len(taken) == 1 and is_number(taken[0], fixed)
    return not taken or numbers


def absorbed(
    node: NodeProto, readers: Mapping[str, list[NodeProto]], fixed: Mapping[str, TensorProto], given: set[str]
) -> str:
    """Give the tensor to round after a node: behind the ReLU or clip that alone reads it, else its own output.

    Args:
        node: A layer or neighbour.
        readers: Value → the nodes that read it.
        fixed: The graph's constants.
        given: The graph's outputs, and what the graphs inside its nodes read.
    """
    output = str(node.output[0])
    after = readers.get(output, [])
    alone = len(after) == 1 and output not in given and after[0].op_type in _ABSORBED
    if not alone or node.op_type in CARRIERS or node.op_type == "HardSigmoid":
        return output
    bounds_known = all(not name or name in fixed for name in after[0].input[1:])
    return str(after[0].output[0]) if bounds_known and after[0].input[0] == output else output

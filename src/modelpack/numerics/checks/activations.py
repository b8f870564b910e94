"""Per-channel quantization of activations, which no integer kernel of onnxruntime takes."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from modelpack.errors import listed
from modelpack.numerics import onnxfile
from modelpack.numerics.checks.finding import failed, passed, unchecked
from modelpack.numerics.stored import INTEGER, Reader

if TYPE_CHECKING:
    from onnx import NodeProto

    from modelpack.numerics.checks.finding import Finding
    from modelpack.numerics.checks.subject import Subject


def check(subject: Subject) -> Finding:
    """Every activation has one scale."""
    if not subject.quantized:
        return unchecked("the model is in floating point throughout")
    reader = Reader(subject.model)
    nodes = [node for graph in onnxfile.graphs(subject.model.graph) for node in graph.node]
    wrong = [node.name or node.output[0] for node in nodes if _by_channel(node, reader)]
    if not wrong:
        return passed()
    return failed(
        f'{len(wrong)} activations have a scale per channel: onnxruntime refuses them ("input zero point must be a '
        'scalar") or computes in floating point',
        "quantize activations per tensor, weights per channel; in NNCF: per_channel=False for activations",
        listed(wrong),
    )


def _by_channel(node: NodeProto, reader: Reader) -> bool:
    """Whether a node rounds a computed value, or takes a rounded one, with more than one scale."""
    if node.op_type == "QuantizeLinear":
        scale = reader.constant(node, 1)
        return scale is not None and math.prod(scale.dims) > 1 and reader.origin(node.input[0]).tensor is None
    scale = reader.constant(node, INTEGER[node.op_type][2]) if node.op_type in INTEGER else None
    return scale is not None and math.prod(scale.dims) > 1

"""Which layers a method can quantize, which it shall, and why the others stay as they are."""

from __future__ import annotations

import fnmatch
import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto

from modelpack.errors import StageError
from modelpack.numerics import onnxfile

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from modelpack.numerics.quantization.settings import Method

WEIGHTED = {
    "Conv": 1,
    "ConvTranspose": 1,
    "Gemm": 1,
    "MatMul": 1,
    "Gather": 0,
    "GRU": 1,
    "LSTM": 1,
    "RNN": 1,
}
"""Operator → position of the weights, for every operator that counts as a layer."""

ABLE: Mapping[str, frozenset[str]] = {
    "static": frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul", "Gather"}),
    "dynamic": frozenset({"Gemm", "MatMul", "Gather"}),
    "weight_only": frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul", "Gather"}),
    "float16": frozenset(WEIGHTED),
    "bfloat16": frozenset(WEIGHTED),
}
"""Method → operators that it can quantize."""

FEWEST = 1024
"""Weights below which a layer that is computed in floats anyway keeps them as floats."""

_UNABLE = {
    ("dynamic", "Conv"): "integer convolutions without calibration are slower than float ones; use `method: static`",
}
_NO_KERNEL = "onnxruntime computes {} in floating point only"


@dataclass(frozen=True)
class Layer:
    """A node with weights.

    Attributes:
        name: The node's name.
        operator: Its operator.
        weights: Name of its weights.
        elements: How many weights.
        reason: Why it is not quantized; empty when it is.
    """

    name: str
    operator: str
    weights: str
    elements: int
    reason: str = ""

    @property
    def quantized(self) -> bool:
        """Whether it is quantized."""
        return not self.reason

    def to_json(self) -> dict[str, object]:
        """Give the layer as one JSON object."""
        return {
            "layer": self.name,
            "operator": self.operator,
            "weights": self.elements,
            "quantized": self.quantized,
            "reason": self.reason,
        }


def choose(model: ModelProto, method: Method, operators: Sequence[str] | None, exclude: Sequence[str]) -> list[Layer]:
    """List every layer in the graph's order, with the reason where one is not to be quantized.

    Args:
        model: A prepared graph.
        method: What will be done.
        operators: Quantize only these; chosen by the kind of network when None.
        exclude: Patterns (``*``, ``?``) of names of nodes to leave alone.

    Raises:
        StageError: When a pattern matches no layer, or a layer's constants hold NaN or infinity.
    """
    wanted = frozenset(operators) if operators is not None else _default_operators(model, method)
    layers = [
        replace(layer, reason=layer.reason or _unwanted(layer, method, wanted, exclude, asked=operators is not None))
        for layer in _all_layers(model, method)
    ]
    for pattern in exclude:
        if not any(fnmatch.fnmatchcase(layer.name, pattern) for layer in layers):
            names = ", ".join(layer.name for layer in layers[:12])
            raise StageError(f"no layer is named like '{pattern}'", where="exclude", then=f"the layers are: {names}")
    _check_finite(model, {layer.name for layer in layers if layer.quantized})
    return layers


def _check_finite(model: ModelProto, chosen: set[str]) -> None:
    """Refuse constants that no grid holds."""
    tensors = onnxfile.constants(model.graph)
    for node in model.graph.node:
        for name in node.input if node.name in chosen else ():
            values = onnxfile.array(tensors[name]) if name in tensors else None
            if values is not None and values.dtype.kind == "f" and not np.isfinite(values).all():
                raise StageError(
                    f"the constant '{name}' of a layer holds NaN or infinity",
                    where=node.name,
                    then="mend the model, or leave the layer out with `exclude:`",
                )


def matching(found: Sequence[Layer], patterns: Sequence[str], where: str) -> list[str]:
    """Name the quantized layers that patterns (``*``, ``?``) pick out.

    Args:
        found: All layers.
        patterns: Each must match a layer that is quantized.
        where: The setting that they come from.

    Raises:
        StageError: When a pattern matches none.
    """
    able = [layer.name for layer in found if layer.quantized and layer.operator not in ("Gather", "ConvTranspose")]
    for pattern in patterns:
        if not any(fnmatch.fnmatchcase(name, pattern) for name in able):
            listed = ", ".join(able[:12])
            raise StageError(
                f"no layer whose activations are quantized is named like '{pattern}'",
                where=where,
                then=f"the layers are: {listed}",
            )
    return [name for name in able if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)]


def excluded(found: Sequence[Layer], patterns: Sequence[str]) -> list[str]:
    """Name the layers that a pattern (``*``, ``?``) leaves out."""
    return [layer.name for layer in found if any(fnmatch.fnmatchcase(layer.name, pattern) for pattern in patterns)]


def left_out(found: Sequence[Layer]) -> str:
    """Count the quantized layers, and name the others by reason, largest first."""
    left = sorted((layer for layer in found if not layer.quantized), key=lambda layer: -layer.elements)
    if not found:
        return "the graph has no layer of an operator with weights that this method knows"
    if not left:
        return "every layer was quantized; the graph's weights are too few to matter"
    reasons: dict[str, list[Layer]] = {}
    for layer in left:
        reasons.setdefault(layer.reason, []).append(layer)
    listed = "; ".join(f"{_largest(some)}: {reason}" for reason, some in list(reasons.items())[:5])
    more = f"; and {len(reasons) - 5} more reasons" if len(reasons) > 5 else ""
    return f"{len(found) - len(left)} of {len(found)} layers were quantized; left in float: {listed}{more}"


def _largest(some: Sequence[Layer]) -> str:
    """Name the largest of some layers, and count the rest."""
    first = f"{some[0].name} ({some[0].elements:,} weights)"
    return f"{first} and {len(some) - 1} more" if len(some) > 1 else first


def _default_operators(model: ModelProto, method: Method) -> frozenset[str]:
    # In attention, masks of large negative numbers and long-tailed sums share tensors with the values that matter.
    if method == "static" and has_attention(model.graph):
        return ABLE[method] - {"Conv"}
    return ABLE[method]


def has_attention(graph: GraphProto) -> bool:
    """Whether a softmax weighs the rows of a matrix product, as in transformers."""
    makers = onnxfile.producers(graph)
    return any(
        node.op_type == "MatMul" and any(_comes_from_softmax(name, makers) for name in node.input[:1])
        for node in graph.node
    )


def _comes_from_softmax(name: str, makers: Mapping[str, NodeProto]) -> bool:
    for _ in range(4):  # through casts, dropout and guards against NaN
        node = makers.get(name)
        if node is None:
            return False
        if node.op_type == "Softmax":
            return True
        name = node.input[-1] if node.op_type == "Where" else node.input[0] if node.input else ""
    return False


def _unwanted(layer: Layer, method: Method, wanted: frozenset[str], exclude: Sequence[str], *, asked: bool) -> str:
    pattern = next((pattern for pattern in exclude if fnmatch.fnmatchcase(layer.name, pattern)), None)
    if pattern is not None:
        return f"excluded by '{pattern}'"
    if layer.operator not in ABLE[method]:
        return _UNABLE.get((method, layer.operator), _NO_KERNEL.format(layer.operator))
    if layer.operator not in wanted:
        return (
            f"{layer.operator} is not among `operators`"
            if asked
            else (f"{layer.operator} stays float32 beside attention unless listed in `operators:`")
        )
    return ""


def _all_layers(model: ModelProto, method: Method) -> list[Layer]:
    found = []
    for graph in onnxfile.graphs(model.graph):
        tensors = onnxfile.constants(model.graph) | onnxfile.constants(graph)
        for node in graph.node:
            place = WEIGHTED.get(node.op_type)
            if place is None or len(node.input) <= place or not node.input[place]:
                continue
            weights = tensors.get(node.input[place])
            layer = Layer(node.name, node.op_type, node.input[place], math.prod(weights.dims) if weights else 0)
            if weights is None:
                if node.op_type in ("Conv", "ConvTranspose"):
                    found.append(replace(layer, reason="its weights are computed by the graph"))
                elif node.op_type == "MatMul" and node.input[0] in tensors:
                    found.append(replace(layer, reason="its weights are the left operand"))
                continue
            if weights.data_type not in (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE):
                continue
            if node.op_type == "Gather" and (len(weights.dims) != 2 or onnxfile.attribute(node, "axis", 0) != 0):
                continue
            inner = "" if graph is model.graph or method == "float16" else "it is inside a branch or loop"
            found.append(replace(layer, reason=inner or _obstacle(node, weights, tensors, method)))
    return found


def _obstacle(node: NodeProto, weights: TensorProto, tensors: Mapping[str, TensorProto], method: Method) -> str:
    """Say what about a node or its weights cannot be quantized; empty when nothing."""
    if weights.data_type != TensorProto.FLOAT:
        return "its weights are not float32"
    if method in ("float16", "bfloat16"):
        return ""
    if node.op_type == "MatMul" and len(weights.dims) != 2:
        return f"its weights have {len(weights.dims)} dimensions, which integer kernels take with one scale in all only"
    if method == "static" and node.op_type == "Conv" and len(node.input) > 2 and node.input[2] not in tensors:
        return "its bias is computed by the graph"
    if method == "static" and node.op_type == "ConvTranspose" and math.prod(weights.dims) < FEWEST:
        return f"it has no integer kernel, and fewer than {FEWEST:,} weights save no bytes"
    return ""


def channel_axis(node: NodeProto) -> int:
    """Give the axis of output channels of the weights of a convolution, ``Gemm`` or ``MatMul``."""
    if node.op_type == "Conv":
        return 0
    if node.op_type == "ConvTranspose":
        return 1
    return 0 if onnxfile.attribute(node, "transB", 0) else 1

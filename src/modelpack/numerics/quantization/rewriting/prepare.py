"""ONNX files from anywhere, made ready to be quantized, or refused with the reason."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnx.inliner
import onnx.version_converter
from onnx import NodeProto, TensorProto, helper, numpy_helper

from modelpack.errors import StageError
from modelpack.numerics import graph as graphs
from modelpack.numerics import onnxfile, optimize, runtime
from modelpack.numerics.quantization.rewriting import equivalents

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto

OLDEST = 13
"""First opset with per-channel ``DequantizeLinear``."""

TARGET = 17
"""Opset that older files are converted to."""

_LEFTOVERS = frozenset({"BatchNormalization", "Identity", "Dropout"})
"""Operators of a graph that was never folded for inference."""

_FUSED = {"FusedConv": "Conv", "FusedGemm": "Gemm"}


def prepare(model: ModelProto) -> tuple[ModelProto, list[str]]:
    """Bring a graph into the form that quantization expects: opset 13 or later, constants as constants, names.

    Args:
        model: Any model; it stays as it is.

    Returns:
        The prepared model, and what was changed that the user should know.

    Raises:
        StageError: When it is quantized already, or too old to be converted.
    """
    if graphs.is_quantized(model):
        raise StageError("the model is quantized already", then="quantize the float model it was made from")
    model, notes = onnxfile.copied(model), []
    if model.functions:
        _check_size(model, "have its functions written out")
        model = onnx.inliner.inline_local_functions(model)
    if onnxfile.opset(model) < OLDEST:
        model = raised(model, TARGET)
        notes.append(f"converted from an older opset to {TARGET}")
    frozen = _freeze(model.graph)
    onnxfile.modernize(model)
    if frozen:
        notes.append(f"{len(frozen)} weights that callers could replace became constants, such as '{frozen[0]}'")
    _name(model.graph)
    _lift_constants(model.graph)
    if _unfolded(model.graph):
        model = optimize.by_onnxruntime(model, level="basic")
        notes.append("batch norms and constant expressions were folded")
        _name(model.graph)
        _lift_constants(model.graph)
    _split_fused(model)
    for node in model.graph.node:
        if node.op_type == "Sum" and not node.domain and len(node.input) == 2:
            node.op_type = "Add"  # the same for two, and known to integer kernels
    model = equivalents.rewritten(model)
    for inner in onnxfile.graphs(model.graph):
        del inner.value_info[:]
    return model, notes


def raised(model: ModelProto, opset: int) -> ModelProto:
    """Convert a model to a later opset, if it is older.

    Returns:
        A new model; the given one stays as it is.

    Raises:
        StageError: When it cannot be converted.
    """
    if onnxfile.opset(model) >= opset:
        return onnxfile.copied(model)
    _check_size(model, f"be converted to opset {opset}")
    try:
        made = onnx.version_converter.convert_version(model, opset)
    except (RuntimeError, onnx.version_converter.ConvertError) as error:
        raise StageError(
            f"this needs opset {opset}, and the graph cannot be converted from {onnxfile.opset(model)}: "
            f"{runtime.reason(error)}",
            then="export the model again with a newer opset",
        ) from error
    made.ir_version = max(made.ir_version, onnx.helper.find_min_ir_version_for(made.opset_import, ignore_unknown=True))
    return made


def _check_size(model: ModelProto, what: str) -> None:
    """Refuse what onnx only does to models that one message holds."""
    if onnxfile.size(model) > onnxfile.LIMIT:
        raise StageError(
            f"the model is larger than {onnxfile.LIMIT:,} bytes, too large to {what}",
            then="export it again in the form that is needed",
        )


def _freeze(graph: GraphProto) -> list[str]:
    """Make initializers that are inputs too into plain constants; gives their names."""
    names = {item.name for item in graph.initializer}
    doubled = [item.name for item in graph.input if item.name in names]
    kept = [onnx.ValueInfoProto.FromString(item.SerializeToString()) for item in graph.input if item.name not in names]
    del graph.input[:]
    graph.input.extend(kept)
    return doubled


def _name(graph: GraphProto) -> None:
    """Give every node a name of its own."""
    taken: set[str] = set()
    for inner in onnxfile.graphs(graph):
        for node in inner.node:
            stem = node.name or node.op_type
            name, count = stem, 0
            while name in taken:
                count += 1
                name = f"{stem}_{count}"
            taken.add(name)
            node.name = name


def _unfolded(graph: GraphProto) -> bool:
    """Whether a graph still has nodes that inference does not need, or that compute constants."""
    fixed = onnxfile.constants(graph)
    return any(
        node.op_type in _LEFTOVERS or (node.input and all(name in fixed for name in node.input if name))
        for node in graph.node
    )


def _lift_constants(graph: GraphProto) -> None:
    """Turn ``Constant`` nodes of tensors into initializers."""
    kept = []
    for node in graph.node:
        value = onnxfile.attribute(node, "value") if node.op_type == "Constant" and not node.domain else None
        if isinstance(value, TensorProto):
            tensor = TensorProto.FromString(value.SerializeToString())
            tensor.name = node.output[0]
            graph.initializer.append(tensor)
        else:
            kept.append(node)
    onnxfile.replace_nodes(graph, kept)


def _split_fused(model: ModelProto) -> None:
    """Take apart layers that an optimizer fused with their activation, since the fused form cannot be quantized."""
    graph = model.graph
    nodes: list[NodeProto] = []
    for node in graph.node:
        nodes += _parts(node, graph) if node.domain == "com.microsoft" and node.op_type in _FUSED else [node]
    onnxfile.replace_nodes(graph, nodes)


def _parts(node: NodeProto, graph: GraphProto) -> list[NodeProto]:
    activation = (onnxfile.attribute(node, "activation") or b"").decode()
    alone = onnxfile.attribute(node, "activation_alpha")  # what a Gemm has instead
    numbers = [alone] if alone is not None else list(onnxfile.attribute(node, "activation_params") or ())
    if activation not in ("", "Relu", "Clip", "Sigmoid", "Tanh", "LeakyRelu"):
        return [node]
    layer = NodeProto.FromString(node.SerializeToString())
    layer.domain, layer.op_type = "", _FUSED[node.op_type]
    settings = [item for item in node.attribute if not item.name.startswith("activation")]
    del layer.attribute[:]
    layer.attribute.extend(settings)
    parts, value = [layer], node.output[0]
    if node.op_type == "FusedConv" and len(node.input) > 3:  # a residual, added before the activation
        del layer.input[3:]
        layer.output[0] = f"{value}:layer"
        parts.append(helper.make_node("Add", [layer.output[0], node.input[3]], [value], name=f"{node.name}:sum"))
    if activation:
        parts[-1].output[0] = f"{value}:inner"
        parts.append(_activation(activation, numbers, node, f"{value}:inner", graph))
    return parts


def _activation(operator: str, numbers: list[float], node: NodeProto, source: str, graph: GraphProto) -> NodeProto:
    inputs = [source]
    if operator == "Clip":
        for number, side in zip(numbers, ("low", "high"), strict=False):
            name = f"{node.name}:{side}"
            graph.initializer.append(numpy_helper.from_array(np.array(number, np.float32), name))
            inputs.append(name)
    made = helper.make_node(operator, inputs, list(node.output), name=f"{node.name}:{operator}")
    if operator == "LeakyRelu" and numbers:
        made.attribute.append(helper.make_attribute("alpha", numbers[0]))
    return made

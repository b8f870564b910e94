"""Multiply-accumulates of ONNX operators, from the shapes of their values."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from onnx import ModelProto, NodeProto, ValueInfoProto, helper

from modelpack.errors import ModelpackError
from modelpack.numerics import onnxfile, rows, runtime

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from modelpack.tensors import TensorSpec

    Shapes = Mapping[str, tuple[int, ...]]


def macs(node: NodeProto, shapes: Shapes) -> int | None:
    """Count one node's multiply-accumulates; None where a shape is not known. Its operator is one of `RULES`."""
    try:
        return RULES[node.op_type](node, shapes)
    except (KeyError, IndexError):
        return None


def shapes(model: ModelProto, inputs: Mapping[str, TensorSpec], sizes: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
    """Find the concrete shapes of a graph's values, taking named dimensions from `sizes` (1 where absent).

    Where inference does not reach, as behind a computed reshape, the model is run once and its values' shapes read.
    """
    twin = onnxfile.copied(model)
    for value in twin.graph.input:
        if value.name in inputs:
            for size, number in zip(value.type.tensor_type.shape.dim, inputs[value.name].sizes(sizes), strict=True):
                size.dim_value = number
    for value in twin.graph.output:
        value.type.tensor_type.ClearField("shape")
    inferred = onnxfile.infer(twin)
    found = {item.name: tuple(item.dims) for item in twin.graph.initializer}
    for value in (*inferred.graph.value_info, *inferred.graph.input, *inferred.graph.output):
        kind = value.type.tensor_type
        if kind.HasField("shape") and all(size.HasField("dim_value") for size in kind.shape.dim):
            found[value.name] = tuple(size.dim_value for size in kind.shape.dim)
    uncounted = [node for node in model.graph.node if node.op_type in RULES and macs(node, found) is None]
    missing = {name for node in uncounted for name in (*node.input, *node.output) if name and name not in found}
    return found | _seen(model, sorted(missing), inputs, sizes)


def _seen(
    model: ModelProto, names: list[str], inputs: Mapping[str, TensorSpec], sizes: Mapping[str, int]
) -> dict[str, tuple[int, ...]]:
    """Run the model on made-up inputs and read the shapes of some values; none when it does not run."""
    twin = onnxfile.copied(model)
    del twin.graph.output[:]
    for place, name in enumerate(names):
        twin.graph.node.append(helper.make_node("Shape", [name], [f"modelpack.shape.{place}"]))
        twin.graph.output.append(ValueInfoProto(name=f"modelpack.shape.{place}"))
    if not names:
        return {}
    dimensions = {name: sizes.get(name, 1) for spec in inputs.values() for name in spec.dynamic.values()}
    batch = dimensions.get(rows.batch_name(inputs) or "", 1)
    try:
        with onnxfile.loadable(twin) as source:
            got = runtime.execute(runtime.session(source, threads=1), rows.sample(inputs, batch, 0, dimensions))
    except ModelpackError:
        return {}  # a count that is not known is reported as such
    return {name: tuple(int(size) for size in shape) for name, shape in zip(names, got.values(), strict=True)}


def _kernel(position: int, *, transposed: bool = False) -> Callable[[NodeProto, Shapes], int]:
    """Convolutions: every output element (input element when transposed) meets one kernel of the weights."""

    def macs(node: NodeProto, shapes: Shapes) -> int:
        walked = shapes[node.input[0] if transposed else node.output[0]]
        return math.prod(walked) * math.prod(shapes[node.input[position]][1:])

    return macs


def _product(node: NodeProto, shapes: Shapes) -> int:
    left = shapes[node.input[0]]
    inner = left[-2] if onnxfile.attribute(node, "transA", 0) else left[-1]
    return math.prod(shapes[node.output[0]]) * inner


def _blocked(node: NodeProto, shapes: Shapes) -> int:
    return math.prod(shapes[node.input[0]]) * int(onnxfile.attribute(node, "N", 0))


def _recurrent(node: NodeProto, shapes: Shapes) -> int:
    steps_and_rows = math.prod(shapes[node.input[0]][:2])
    return steps_and_rows * (math.prod(shapes[node.input[1]]) + math.prod(shapes[node.input[2]]))


RULES: Mapping[str, Callable[[NodeProto, Shapes], int]] = {
    "Conv": _kernel(1),
    "FusedConv": _kernel(1),
    "ConvInteger": _kernel(1),
    "QLinearConv": _kernel(3),
    "ConvTranspose": _kernel(1, transposed=True),
    "Gemm": _product,
    "FusedGemm": _product,
    "QGemm": _product,
    "MatMul": _product,
    "FusedMatMul": _product,
    "MatMulInteger": _product,
    "MatMulIntegerToFloat": _product,
    "DynamicQuantizeMatMul": _product,
    "QLinearMatMul": _product,
    "MatMulNBits": _blocked,
    "GRU": _recurrent,
    "LSTM": _recurrent,
    "RNN": _recurrent,
}
"""Operator → multiply-accumulates of one node from the shapes of its values."""

"""Sixteen-bit floating point: half the bytes, for processors that compute in it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnxconverter_common import float16

from modelpack.errors import StageError
from modelpack.numerics import graph as graphs
from modelpack.numerics import onnxfile, runtime
from modelpack.numerics.quantization import operators
from modelpack.numerics.quantization.calibration import hidden
from modelpack.numerics.quantization.calibration.measure import measure
from modelpack.numerics.quantization.settings import Outcome
from modelpack.numerics.silence import quiet
from modelpack.tensors import TensorSpec

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from onnx import ModelProto

    from modelpack.numerics.quantization.layers import Layer
    from modelpack.numerics.quantization.settings import Evidence, Settings

LARGEST = float(np.finfo(np.float16).max)
SMALLEST = float(np.finfo(np.float16).smallest_subnormal)

LOOKED_AT = 32
"""Rows that are looked at, at most, to see whether all values fit."""


def quantize(model: ModelProto, found: Sequence[Layer], settings: Settings, evidence: Evidence) -> Outcome:
    """Convert weights and computation to float16.

    Layers that are not chosen stay as they are, and so do the operators that were named and those that onnxruntime has
    in float32 only.

    Args:
        model: A prepared graph; it stays as it is.
        found: Its layers, chosen.
        settings: Names the operators that stay float32.
        evidence: Rows to look for values on that float16 does not hold.

    Raises:
        StageError: When a weight or a value is too large for float16, the converter fails, onnxruntime cannot open the
            result, or no node has an operator that is to stay float32.
    """
    apart = {layer.name for layer in found if not layer.quantized} | operators.named(model, settings.keep_operators)
    only = operators.without_float16(model)
    apart |= {name for names in only.values() for name in names}
    beyond = _beyond(model, frozenset(apart))
    made = converted(model, apart)
    # Its rules for float16 on processors are young: some graphs crash the whole process instead of failing.
    with onnxfile.loadable(made) as place:
        if not runtime.survives(place, evidence.device):
            raise StageError(
                f"onnxruntime {runtime.ort.__version__} crashes when it opens the float16 graph on {evidence.device}",
                then="use `method: static` or `method: dynamic`, or exclude layers",
            )
    _check_values(model, apart, evidence)
    notes = [f"stay float32, since onnxruntime has them in no other type: {', '.join(only)}"] if only else []
    if beyond:
        notes.append(f"numbers beyond float16 became its largest or lowest, ±{LARGEST:g}: {', '.join(beyond)}")
    return Outcome(made, notes=tuple(notes))


def _check_values(model: ModelProto, apart: Collection[str], evidence: Evidence) -> None:
    """Refuse a graph whose values float16 does not hold; numbers that hide positions from attention may be lost.

    The float graph is looked at, since onnxruntime computes in float32 on processors, where nothing would overflow.

    Raises:
        StageError: With the first node whose values are too large.
    """
    feeds = list(evidence.read("look for values too large", LOOKED_AT))
    if not feeds:
        return
    made, readers = onnxfile.infer(model), onnxfile.consumers(model.graph)
    known = (*made.graph.value_info, *made.graph.output)
    floats = {item.name for item in known if item.type.tensor_type.elem_type == onnx.TensorProto.FLOAT}
    makers = {
        name: node.name
        for node in model.graph.node
        for name in node.output
        if name in floats and not {node.name, *(reader.name for reader in readers.get(name, []))} <= set(apart)
    }
    inputs = {name: TensorSpec.model_validate(spec) for name, spec in graphs.signature(model)["inputs"].items()}
    seen = measure(model, list(makers), feeds, inputs, histograms=False, device=evidence.device).tensors
    for name, node in makers.items():
        largest = max(-seen[name].low, seen[name].high)
        if largest > LARGEST:
            raise StageError(
                f"values reach {largest:.3g}, float16 ends at {LARGEST:g}",
                where=node,
                then="keep the layer in float32 (`exclude`, or its operator by `keep_operators`), or use "
                "`method: bfloat16`",
            )


def converted(model: ModelProto, left_alone: Iterable[str]) -> ModelProto:
    """Convert weights and computation to float16; inputs and outputs stay float32.

    Args:
        model: A prepared graph.
        left_alone: Names of nodes that go on computing in float32.

    Returns:
        A new model; the given one stays as it is.

    Raises:
        StageError: When the converter fails.
    """
    apart = frozenset(left_alone)
    try:
        with quiet():
            fresh: ModelProto = float16.convert_float_to_float16(
                onnxfile.infer(_with_own_weights(_with_own_outputs(model, apart), apart)),
                keep_io_types=True,
                node_block_list=sorted(apart),
                min_positive_val=SMALLEST,
                max_finite_val=LARGEST,
            )
    except Exception as error:  # the converter raises plain exceptions of many kinds
        raise StageError(f"the float16 converter failed: {runtime.reason(error)}") from error
    _turn_casts(fresh, {node.name for node in model.graph.node} - apart)
    _in_order(fresh)
    return fresh


def _stays(node: onnx.NodeProto, apart: frozenset[str]) -> bool:
    return node.op_type in float16.DEFAULT_OP_BLOCK_LIST or node.name in apart


def _with_own_outputs(model: ModelProto, apart: frozenset[str]) -> ModelProto:
    """Copy a model so that the converter gives every output of the graph float32.

    It errs where a node reads an output too, and where none makes it or one that stays in float32.
    """
    twin = onnxfile.copied(model)
    taken = {item.name for item in twin.graph.input}
    readers, makers = onnxfile.consumers(twin.graph), onnxfile.producers(twin.graph)
    inner = {
        item.name: f"{item.name}:inner"
        for item in twin.graph.output
        if item.name not in taken
        and (item.name in readers or item.name not in makers or _stays(makers[item.name], apart))
    }
    for node in twin.graph.node:
        for values in (node.input, node.output):
            for place, name in enumerate(values):
                values[place] = inner.get(name, name)
    for tensor in twin.graph.initializer:
        tensor.name = inner.get(tensor.name, tensor.name)
    for name, source in inner.items():
        twin.graph.node.append(onnx.helper.make_node("Identity", [source], [name], name=f"{name}:output"))
    return twin


def _with_own_weights(model: ModelProto, apart: frozenset[str]) -> ModelProto:
    """Give nodes that stay in float32 weights of their own, in place: the converter leaves shared ones in float32."""
    weights = {item.name: item for item in model.graph.initializer if item.data_type == onnx.TensorProto.FLOAT}
    readers = onnxfile.consumers(model.graph)
    for node in model.graph.node:
        for place, name in enumerate(node.input if _stays(node, apart) else ()):
            if name in weights and not all(_stays(reader, apart) for reader in readers[name]):
                twin = model.graph.initializer.add()
                twin.CopyFrom(weights[name])
                twin.name = node.input[place] = f"{name}:{node.name or node.output[0]}:{place}"
    return model


def _beyond(model: ModelProto, apart: frozenset[str]) -> list[str]:
    """Name the constants that the converter cuts off at float16's ends: single numbers, and what hides positions.

    Raises:
        StageError: For any other constant that float16 does not hold.
    """
    read = {name for node in model.graph.node if not _stays(node, apart) for name in node.input}
    hiding, found = hidden.constants(model), []
    for tensor in model.graph.initializer:
        if tensor.data_type != onnx.TensorProto.FLOAT or tensor.name not in read:
            continue
        values = np.abs(onnxfile.array(tensor).astype(np.float64))
        largest = float(values.max(initial=0.0, where=np.isfinite(values)))
        if largest <= LARGEST:
            continue
        if values.size > 1 and tensor.name not in hiding:
            raise StageError(
                f"a weight of magnitude {largest:.3g} does not fit into float16 (largest {LARGEST:g})",
                where=tensor.name,
                then="exclude the layers that use it",
            )
        found.append(tensor.name)
    return found


def _turn_casts(model: ModelProto, own: set[str]) -> None:
    """Let the model's own casts to float32 give float16, which the converter forgets."""
    for node in model.graph.node:
        if node.op_type == "Cast" and node.name in own:
            for attribute in node.attribute:
                if attribute.name == "to" and attribute.i == onnx.TensorProto.FLOAT:
                    attribute.i = onnx.TensorProto.FLOAT16


def _in_order(model: ModelProto) -> None:
    """Sort nodes so that every value is made before it is read; the converter appends its casts anywhere."""
    graph = model.graph
    waiting = list(graph.node)
    made = {item.name for item in (*graph.input, *graph.initializer)} | {""}
    ordered = []
    while waiting:
        ready = [node for node in waiting if made.issuperset(_reads(node))]
        if not ready:
            return
        names = {id(node) for node in ready}
        for node in ready:
            ordered.append(node)
            made.update(node.output)
        waiting = [node for node in waiting if id(node) not in names]
    onnxfile.replace_nodes(graph, ordered)


def _reads(node: onnx.NodeProto) -> set[str]:
    """List what a node reads, what its inner graphs take from outside included."""
    found = set(node.input)
    for attribute in node.attribute:
        for inner in (attribute.g, *attribute.graphs):
            own = {item.name for item in (*inner.input, *inner.initializer)}
            for item in inner.node:
                found |= _reads(item) - own
                own.update(item.output)
    return found

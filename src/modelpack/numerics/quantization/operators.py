"""Which nodes go on computing in float32: those whose operators were named, and those that know nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnxruntime.capi import onnxruntime_pybind11_state as engine

from modelpack.errors import StageError, did_you_mean
from modelpack.numerics import onnxfile

if TYPE_CHECKING:
    from collections.abc import Iterable

    from onnx import ModelProto, NodeProto

_FLOAT, _HALF = "tensor(float)", "tensor(float16)"


def named(model: ModelProto, operators: Iterable[str]) -> set[str]:
    """Name the nodes of some operators, graphs inside nodes included.

    Raises:
        StageError: When no node has one of them.
    """
    there: dict[str, set[str]] = {}
    for graph in onnxfile.graphs(model.graph):
        for node in graph.node:
            there.setdefault(node.op_type, set()).add(node.name)
    for operator in operators:
        if operator not in there:
            hint = did_you_mean(operator, there) or f"the operators are: {', '.join(sorted(there))}"
            raise StageError(f"the graph has no operator '{operator}'", where="keep_operators", then=hint)
    return set().union(*(there[operator] for operator in operators))


def without_float16(model: ModelProto) -> dict[str, list[str]]:
    """Find the nodes that read or make float32 where onnxruntime's definition of the operator has no float16.

    Returns:
        Operator → names of its nodes.
    """
    definitions = _definitions(model)
    found: dict[str, list[str]] = {}
    for graph in onnxfile.graphs(model.graph):
        for node in graph.node:
            definition = definitions.get((_domain(node.domain), node.op_type))
            if definition is not None and _only_float32(node, definition):
                found.setdefault(node.op_type, []).append(node.name)
    return dict(sorted(found.items()))


def _definitions(model: ModelProto) -> dict[tuple[str, str], engine.schemadef.OpSchema]:
    """Give the definition of each operator that holds at a model's opsets."""
    versions = {_domain(item.domain): item.version for item in model.opset_import}
    newest: dict[tuple[str, str], engine.schemadef.OpSchema] = {}
    for item in engine.get_all_operator_schema():
        key = (item.domain, item.name)
        older = key not in newest or newest[key].since_version < item.since_version
        if older and item.since_version <= versions.get(item.domain, 1):
            newest[key] = item
    return newest


def _domain(name: str) -> str:
    return "" if name in onnxfile.STANDARD else name


def _only_float32(node: NodeProto, definition: engine.schemadef.OpSchema) -> bool:
    allowed = {item.type_param_str: set(item.allowed_type_strs) for item in definition.type_constraints}
    for values, ports in ((node.input, definition.inputs), (node.output, definition.outputs)):
        for place, name in enumerate(values):
            port = ports[min(place, len(ports) - 1)]  # the last one stands for any number
            kinds = allowed.get(port.typeStr, {port.typeStr})
            if name and _FLOAT in kinds and _HALF not in kinds:
                return True
    return False

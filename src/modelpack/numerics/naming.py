"""Names in an exported graph: nodes called by the user's modules, weights by the user's state dict."""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING

from modelpack.numerics import onnxfile
from modelpack.numerics.tracing import PREFIX, RESERVED

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import onnx

_SCOPES = "pkg.torch.onnx.name_scopes"


def name_nodes(graph: onnx.GraphProto) -> None:
    """Name every node ``module/Operator``; the exporter's own names count all nodes the process ever made."""
    uses = onnxfile.consumers(graph)
    taken: dict[str, int] = {}
    for inner in onnxfile.graphs(graph):
        for node in inner.node:
            module = _module_of(node, uses)
            name = f"{module}/{node.op_type}" if module else node.op_type
            taken[name] = taken.get(name, -1) + 1
            node.name = f"{name}_{taken[name]}" if taken[name] else name


def _module_of(node: onnx.NodeProto, uses: Mapping[str, list[onnx.NodeProto]]) -> str:
    # A fused batch norm leaves its own scope on the convolution; the weight knows better, unless it is shared.
    for name in node.input[1:2]:
        owner, _, kind = name.rpartition(".")
        if kind == "weight" and len(uses[name]) == 1:
            return str(owner.removeprefix(PREFIX))
    scopes = next((item.value for item in node.metadata_props if item.key == _SCOPES), "[]")
    path: list[str] = ast.literal_eval(scopes)
    scope = path[-2] if len(path) > 1 else ""
    return scope.removeprefix(PREFIX) if scope.startswith(PREFIX) else ""


def name_values(graph: onnx.GraphProto, inputs: Sequence[str], outputs: Sequence[str]) -> None:
    """Give inputs and outputs their names, and weights those of the user's state dict.

    The exporter itself would let an output or a weight called ``mean`` collide with an inner value of that name.
    """
    wanted = {item.name: name for item, name in zip(graph.input, inputs, strict=True)}
    wanted |= {item.name: name for item, name in zip(graph.output, outputs, strict=True)}
    public = set(wanted.values())
    inner = [item.name for item in graph.initializer] + [
        name for each in onnxfile.graphs(graph) for node in each.node for name in node.output
    ]
    weights = {name.removeprefix(PREFIX) for name in inner if name.startswith(PREFIX)}
    for name in inner:
        if name in wanted:
            continue
        if name.startswith(PREFIX):
            short = name.removeprefix(PREFIX)
            wanted[name] = f"{RESERVED}weight.{short}" if short in public else short
        elif name in public or name in weights:
            wanted[name] = f"{RESERVED}{name}"
    onnxfile.rename(graph, wanted)

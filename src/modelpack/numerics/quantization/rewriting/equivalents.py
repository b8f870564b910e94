"""Operators without an integer kernel, written as others that have one and give the same.

1. A mean over all places of a picture is ``GlobalAveragePool``.
2. ``HardSwish`` is ``x * HardSigmoid(x)``, as onnxruntime computes it anyway.
3. A ``Gemm`` takes its left operand as it is and its factors inside its constants; one whose third operand is not a
   value per column is a ``MatMul`` and an ``Add``.
4. Zeros around a picture are the convolution's own padding.
5. A ReLU or clip behind an operator that only moves values goes before it, where a layer takes it in.
6. A transposed convolution whose kernel is as large as its stride is a convolution of single places and
   ``DepthToSpace`` (Shi et al. 2016, arXiv 1609.07009).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from modelpack.numerics import onnxfile

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray


MOVERS = frozenset({"MaxPool", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "DepthToSpace"})
"""Operators that keep the order of values, so that a ReLU or clip may be before or behind."""


def rewritten(model: ModelProto) -> ModelProto:
    """Rewrite what can be.

    Args:
        model: A graph of opset 13 or later whose nodes have names; it stays as it is.

    Returns:
        A new model with the same outputs up to rounding of floats; a layer keeps its name.
    """
    twin = onnxfile.copied(model)
    graph = _Graph(twin)
    nodes: list[NodeProto] = []
    for node in twin.graph.node:
        rule = _RULES.get(node.op_type) if not node.domain else None
        nodes += (rule(node, graph) if rule is not None else None) or [node]
    onnxfile.replace_nodes(twin.graph, nodes)
    _fold_padding(twin.graph)
    _advance(twin.graph)
    onnxfile.drop_unread(twin.graph)
    return twin


class _Graph:
    """What the rules look up and add."""

    def __init__(self, model: ModelProto) -> None:
        self.graph = model.graph
        self.fixed = onnxfile.constants(model.graph)
        inferred = onnxfile.infer(onnxfile.outline(model)).graph
        known = (
            (item.name, item.type.tensor_type) for item in (*inferred.value_info, *inferred.input, *inferred.output)
        )
        self.ranks = {
            name: len(kind.shape.dim)
            for name, kind in known
            if kind.elem_type == TensorProto.FLOAT and kind.HasField("shape")
        }

    def array(self, name: str) -> NDArray[np.generic] | None:
        return onnxfile.array(self.fixed[name]) if name in self.fixed else None

    def constant(self, name: str, values: NDArray[np.generic]) -> str:
        self.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(values), name))
        self.fixed[name] = self.graph.initializer[-1]
        return name


def _mean(node: NodeProto, graph: _Graph) -> list[NodeProto] | None:
    """Rule 1; a mean that drops the places' axes takes them off afterwards."""
    rank = graph.ranks.get(node.input[0], 0)
    given = graph.array(node.input[1]) if len(node.input) > 1 and node.input[1] else None
    axes = onnxfile.attribute(node, "axes") if given is None else given.reshape(-1).tolist()
    if rank < 3 or axes is None or sorted(axis % rank for axis in axes) != list(range(2, rank)):
        return None
    if onnxfile.attribute(node, "keepdims", 1):
        return [helper.make_node("GlobalAveragePool", list(node.input[:1]), list(node.output), name=node.name)]
    whole = f"{node.output[0]}:kept"
    return [
        helper.make_node("GlobalAveragePool", list(node.input[:1]), [whole], name=node.name),
        helper.make_node("Flatten", [whole], list(node.output), name=f"{node.name}:flat"),
    ]


def _hard_swish(node: NodeProto, _graph: _Graph) -> list[NodeProto]:
    """Rule 2."""
    gate = f"{node.output[0]}:gate"
    return [
        helper.make_node("HardSigmoid", list(node.input), [gate], name=f"{node.name}:gate", alpha=1 / 6, beta=0.5),
        helper.make_node("Mul", [node.input[0], gate], list(node.output), name=node.name),
    ]


def _gemm(node: NodeProto, graph: _Graph) -> list[NodeProto] | None:
    """Rule 3."""
    weights = graph.array(node.input[1])
    if weights is None or weights.dtype != np.float32:
        return None
    turned = bool(onnxfile.attribute(node, "transB", 0))
    alpha, beta = (float(onnxfile.attribute(node, name, 1.0)) for name in ("alpha", "beta"))
    left, nodes = node.input[0], list[NodeProto]()
    if onnxfile.attribute(node, "transA", 0):
        left = f"{node.name}:left"
        nodes.append(helper.make_node("Transpose", [node.input[0]], [left], name=f"{node.name}:turn", perm=[1, 0]))
    added = node.input[2] if len(node.input) > 2 else ""
    bias = graph.array(added) if added else None
    channels = weights.shape[0 if turned else 1]
    columns = bias is not None and (bias.size == 1 or (bias.size == channels and bias.shape[-1] == channels))
    if (not added or columns) and not nodes and alpha == 1.0 and (beta == 1.0 or not added):
        return None
    scaled = (
        node.input[1]
        if alpha == 1.0
        else graph.constant(f"{node.name}:weights", weights.astype(np.float32) * np.float32(alpha))
    )
    if bias is not None and beta != 1.0:
        added = graph.constant(f"{node.name}:added", bias.astype(np.float32) * np.float32(beta))
    if not added or columns:
        inputs = [left, scaled, added] if added else [left, scaled]
        return [*nodes, helper.make_node("Gemm", inputs, list(node.output), name=node.name, transB=int(turned))]
    return [*nodes, *_product(node, graph, (left, scaled, added), 1.0 if bias is not None else beta)]


def _product(node: NodeProto, graph: _Graph, inputs: tuple[str, str, str], factor: float) -> list[NodeProto]:
    """Write a ``Gemm`` as a product and a sum."""
    (left, right, added), nodes, product = inputs, list[NodeProto](), f"{node.output[0]}:product"
    if onnxfile.attribute(node, "transB", 0):
        right = graph.constant(f"{node.name}:turned", onnxfile.array(graph.fixed[right]).T)
    if factor != 1.0:
        number = graph.constant(f"{node.name}:beta", np.array(factor, np.float32))
        nodes.append(helper.make_node("Mul", [added, number], [f"{node.name}:scaled"], name=f"{node.name}:scaled"))
        added = f"{node.name}:scaled"
    return [
        *nodes,
        helper.make_node("MatMul", [left, right], [product], name=node.name),
        helper.make_node("Add", [product, added], list(node.output), name=f"{node.name}:sum"),
    ]


def _upsampling(node: NodeProto, graph: _Graph) -> list[NodeProto] | None:
    """Rule 6."""
    weights = graph.array(node.input[1])
    bias = graph.array(node.input[2]) if len(node.input) > 2 and node.input[2] else None
    if weights is None or weights.ndim != 4 or (len(node.input) > 2 and node.input[2] and bias is None):
        return None
    size = weights.shape[2]
    plain = {"group": (1,), "strides": ([size, size],), "pads": (None, [0] * 4), "dilations": (None, [1, 1])}
    plain |= {"output_padding": (None, [0, 0]), "output_shape": (None,), "auto_pad": (None, b"NOTSET", b"VALID")}
    found = {name: onnxfile.attribute(node, name, 1 if name == "group" else None) for name in plain}
    if weights.shape[3] != size or any(found[name] not in allowed for name, allowed in plain.items()):
        return None
    places = np.moveaxis(weights, 0, -1).reshape(-1, weights.shape[0], 1, 1)
    inputs = [node.input[0], graph.constant(f"{node.name}:places", places)]
    if bias is not None:
        inputs.append(graph.constant(f"{node.name}:offsets", np.repeat(bias, size * size)))
    deep = f"{node.output[0]}:deep"
    return [
        helper.make_node("Conv", inputs, [deep], name=node.name),
        helper.make_node(
            "DepthToSpace", [deep], list(node.output), name=f"{node.name}:spread", blocksize=size, mode="CRD"
        ),
    ]


_RULES: dict[str, Callable[[NodeProto, _Graph], list[NodeProto] | None]] = {
    "ReduceMean": _mean,
    "HardSwish": _hard_swish,
    "Gemm": _gemm,
    "ConvTranspose": _upsampling,
}


def _fold_padding(graph: GraphProto) -> None:
    """Rule 4. Changes `graph`."""
    fixed, readers = onnxfile.constants(graph), onnxfile.consumers(graph)
    given = {item.name for item in graph.output}
    kept: list[NodeProto] = []
    for node in graph.node:
        after = readers.get(node.output[0], []) if node.output else []
        pads = _zeros(node, fixed)
        if pads is None or not after or node.output[0] in given or not all(_paddable(reader, node) for reader in after):
            kept.append(node)
            continue
        for reader in after:
            own = list(onnxfile.attribute(reader, "pads") or [0] * len(pads))
            others = [item for item in reader.attribute if item.name != "pads"]
            del reader.attribute[:]
            summed = [one + two for one, two in zip(own, pads, strict=True)]
            reader.attribute.extend([*others, helper.make_attribute("pads", summed)])
            reader.input[0] = node.input[0]
    if len(kept) < len(graph.node):
        onnxfile.replace_nodes(graph, kept)


def _zeros(node: NodeProto, fixed: Mapping[str, TensorProto]) -> list[int] | None:
    """Read how many zeros a ``Pad`` puts around each axis of places; None when it does anything else."""
    if node.op_type != "Pad" or (onnxfile.attribute(node, "mode") or b"constant") != b"constant" or node.input[3:]:
        return None
    if any(name and name not in fixed for name in node.input[1:]):
        return None
    if len(node.input) > 2 and node.input[2] and onnxfile.array(fixed[node.input[2]]).any():
        return None
    pads = [int(pad) for pad in onnxfile.array(fixed[node.input[1]])]
    axes = len(pads) // 2
    if axes < 3 or min(pads) < 0 or any((*pads[:2], *pads[axes : axes + 2])):
        return None
    return [*pads[2:axes], *pads[axes + 2 :]]


def _paddable(node: NodeProto, pad: NodeProto) -> bool:
    own = node.op_type == "Conv" and (onnxfile.attribute(node, "auto_pad") or b"NOTSET") == b"NOTSET"
    return own and pad.output[0] == node.input[0] and pad.output[0] not in node.input[1:]


def _advance(graph: GraphProto) -> None:
    """Rule 5. Changes `graph`."""
    given = {item.name for item in graph.output}
    while pair := _out_of_turn(graph, given):
        nodes = list(graph.node)
        first, second = pair
        mover, limit = nodes[first], nodes[second]
        before, between, after = mover.input[0], mover.output[0], limit.output[0]
        mover.input[0], mover.output[0], limit.input[0], limit.output[0] = between, after, before, between
        nodes[first], nodes[second] = limit, mover
        onnxfile.replace_nodes(graph, nodes)


def _out_of_turn(graph: GraphProto, given: set[str]) -> tuple[int, int] | None:
    """Find a mover that only a ReLU or clip reads: the positions of both."""
    readers, fixed = onnxfile.consumers(graph), onnxfile.constants(graph)
    places = {name: place for place, node in enumerate(graph.node) for name in node.output}
    for second, node in enumerate(graph.node):
        first = places.get(node.input[0]) if node.op_type in ("Relu", "Clip") else None
        if first is None or graph.node[first].op_type not in MOVERS or len(graph.node[first].output) != 1:
            continue
        known = all(not name or name in fixed for name in node.input[1:])  # others may be made later
        if known and node.input[0] not in given and len(readers[node.input[0]]) == 1:
            return first, second
    return None

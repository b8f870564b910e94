"""Where values in a graph must not count: at padded positions, and as numbers that hide positions from attention."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from onnx import TensorProto, ValueInfoProto, helper

from modelpack.numerics import onnxfile, rows, runtime

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from onnx import ModelProto, NodeProto

    from modelpack.numerics.rows import Feed
    from modelpack.tensors import TensorSpec

DEEP = -9_999.0
"""Constants below this that are added to values, or chosen instead of them, hide positions."""

_FEW = 2
"""Rows that tell a tensor's shape."""

_MOVERS = frozenset(
    {"Cast", "Clip", "Expand", "Flatten", "Gather", "Identity", "Reshape", "Slice", "Split", "Squeeze", "Tile",
     "Transpose", "Trilu", "Unsqueeze"}
)  # fmt: skip


def aligned(
    model: ModelProto,
    names: Sequence[str],
    mask: str,
    inputs: Mapping[str, TensorSpec],
    feed: Feed,
    *,
    device: str = "cpu",
) -> dict[str, tuple[int, int]]:
    """Find the tensors whose leading axes are the mask's, apart or as one: how many those are, of how many.

    Shape inference loses names of dimensions on its way through a graph; so the graph runs on the feed's first rows,
    and on those cut by one in each dimension of the mask that may vary.

    Raises:
        StageError: When the model fails on the feed.
    """
    few = rows.take(feed, inputs, _FEW)
    with onnxfile.loadable(_shaped(model, names)) as content:
        opened = runtime.session(content, device, entries=runtime.AT_REST)
    seen = []
    for cut in (few, *(_shorter(few, inputs, name) for name in sorted(set(inputs[mask].dynamic.values())))):
        got = [tuple(value.tolist()) for value in runtime.execute(opened, cut).values()]
        seen.append((cut[mask].shape, dict(zip(names, got, strict=True))))
    found = {}
    for name in names:
        if all(shapes[name][: len(wanted)] == wanted for wanted, shapes in seen):
            found[name] = (len(inputs[mask].shape), len(seen[0][1][name]))
        elif all(shapes[name][:1] == (math.prod(wanted),) for wanted, shapes in seen):
            found[name] = (1, len(seen[0][1][name]))
    return found


def _shorter(feed: Feed, inputs: Mapping[str, TensorSpec], dimension: str) -> Feed:
    cut = {}
    for name, values in feed.items():
        keep = [
            slice(None, -1) if inputs[name].dynamic.get(axis) == dimension and size > 1 else slice(None)
            for axis, size in enumerate(values.shape)
        ]
        cut[name] = np.ascontiguousarray(values[tuple(keep)])
    return cut


def _shaped(model: ModelProto, names: Sequence[str]) -> ModelProto:
    """Copy a model so that it gives the shapes of some tensors, and nothing else."""
    twin = onnxfile.copied(model)
    del twin.graph.output[:]
    for place, name in enumerate(names):
        twin.graph.node.append(helper.make_node("Shape", [name], [f"modelpack.shape.{place}"]))
        twin.graph.output.append(ValueInfoProto(name=f"modelpack.shape.{place}"))
    return twin


def floors(model: ModelProto) -> dict[str, float]:
    """Find the tensors that may hold numbers which hide positions: ``-inf``, the least float, -10000 and the like.

    Such a number comes from a constant that `Where` chooses, or that is added or multiplied in; it may be moved, and
    added to scores.

    Returns:
        Tensor → the bound below which its values are such numbers: half of the constant, for scores are far smaller.
    """
    fixed = onnxfile.constants(model.graph)
    deep = {name: least / 2 for name, tensor in fixed.items() if (least := _least(tensor)) is not None}
    found: dict[str, float] = {}
    for node in model.graph.node:
        bounds = [bound for name in _hidden_by(node) if (bound := found.get(name, deep.get(name))) is not None]
        if bounds:
            found |= dict.fromkeys(node.output, max(bounds))
    return found


def constants(model: ModelProto) -> set[str]:
    """Name the constants that do nothing but hide positions: `floors` begin there, and no node reads them otherwise."""
    deep = {name for name, tensor in onnxfile.constants(model.graph).items() if _least(tensor) is not None}
    otherwise = {name for node in model.graph.node for name in {*node.input} - {*_hidden_by(node)}}
    return deep - otherwise


def _hidden_by(node: NodeProto) -> Sequence[str]:
    """List the inputs of a node whose deep numbers reach its output."""
    match node.op_type:
        case "Where":
            return list(node.input[1:])
        case "Add" | "Sub" | "Mul" | "Max" | "Min" | "Concat":
            return list(node.input)
        case operator if operator in _MOVERS:
            return list(node.input[:1])
    return ()


def _least(tensor: TensorProto) -> float | None:
    """Give the constant that hides positions, for a tensor that holds nothing else but zeros."""
    if tensor.data_type not in (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE):
        return None
    values = onnxfile.array(tensor).astype(np.float64)
    deep = values <= DEEP
    if not values.size or not deep.any() or not (deep | (values == 0)).all():
        return None
    return float(values[deep].max())

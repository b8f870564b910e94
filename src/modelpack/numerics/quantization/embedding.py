"""Embeddings as signed bytes with a scale per row: ``Gather`` of the row and of its scale, ``Cast``, ``Mul``.

Only the rows that are looked up become floats again, so that the table stays small in memory too, and needs no
calibration: it has no activations.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper

from modelpack.numerics import grid, onnxfile
from modelpack.numerics.quantization.tables import Tables

if TYPE_CHECKING:
    from collections.abc import Iterable


def quantize(model: ModelProto, chosen: Iterable[str]) -> ModelProto:
    """Rewrite the chosen lookups.

    Args:
        model: A prepared graph.
        chosen: Names of ``Gather`` nodes along axis 0 of constant float32 tables of two dimensions.

    Returns:
        A new model; the given one stays as it is.
    """
    twin = onnxfile.copied(model)
    layers, tensors, tables = frozenset(chosen), onnxfile.constants(twin.graph), Tables(twin.graph)
    nodes: list[NodeProto] = []
    for node in twin.graph.node:
        if node.name not in layers:
            nodes.append(node)
            continue
        table = node.input[0]
        values = onnxfile.array(tensors[table]).astype(np.float32)
        scales = grid.symmetric_scales(values, 0)
        tables.constant(f"{table}:lookup:quantized", grid.to_int8(values, scales, 0))
        tables.constant(f"{table}:lookup:scale", scales[:, None])
        nodes += _lookup(node)
    tables.finish(nodes)
    return twin


def _lookup(node: NodeProto) -> list[NodeProto]:
    (table, rows), name = node.input, node.name
    return [
        helper.make_node("Gather", [f"{table}:lookup:quantized", rows], [f"{name}:bytes"], name=f"{name}:bytes"),
        helper.make_node("Gather", [f"{table}:lookup:scale", rows], [f"{name}:scale"], name=f"{name}:scale"),
        helper.make_node("Cast", [f"{name}:bytes"], [f"{name}:float"], name=f"{name}:float", to=TensorProto.FLOAT),
        helper.make_node("Mul", [f"{name}:float", f"{name}:scale"], list(node.output), name=name),
    ]

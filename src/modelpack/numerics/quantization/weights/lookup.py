"""Embeddings in 4 bits: a row's packed codes are looked up, unpacked and scaled, all in standard operators.

Only the rows that are looked up become floats, so that the table stays small in memory too. Codes are packed as `nbits`
packs them, so that a table which is also multiplied with is stored once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from onnx import NodeProto, TensorProto, helper

from modelpack.numerics.quantization.weights import blocks

if TYPE_CHECKING:
    from modelpack.numerics.quantization.tables import Tables
    from modelpack.numerics.quantization.weights.blocks import Blocks


def rows(tables: Tables, node: NodeProto, stem: str, weights: Blocks) -> list[NodeProto]:
    """Give the nodes that stand for a ``Gather`` of rows.

    Args:
        tables: Takes the constants.
        node: The float lookup.
        stem: Begins the names of the constants, which layers may share.
        weights: The table ``(n, k)``, rounded to 4 bits.
    """
    write = _Writer(node.name)
    four = tables.constant("modelpack.four", np.array(4, np.uint8))
    last = tables.constant("modelpack.last", np.array([-1], np.int64))
    codes = tables.constant(f"{stem}:codes", blocks.pack(weights.codes, 4))
    packed = write("Gather", codes, node.input[1])
    high = write("BitShift", packed, four, direction="RIGHT")
    low = write("BitShift", write("BitShift", packed, four, direction="LEFT"), four, direction="RIGHT")
    pairs = write("Concat", write("Unsqueeze", low, last), write("Unsqueeze", high, last), axis=-1)
    found = write("Shape", node.input[1])
    cells = tables.constant(f"{stem}:cells", np.array(weights.codes.shape[1:], np.int64))
    flat = write("Reshape", pairs, write("Concat", found, cells, axis=0))
    zeros = write(
        "Gather", tables.constant(f"{stem}:offsets", weights.grid.zeros.astype(np.uint8)[..., None]), node.input[1]
    )
    scales = write("Gather", tables.constant(f"{stem}:steps", weights.grid.compact()), node.input[1])
    steps = write("Sub", write("Cast", flat, to=TensorProto.FLOAT), write("Cast", zeros, to=TensorProto.FLOAT))
    scaled = write("Mul", steps, write("Unsqueeze", write("Cast", scales, to=TensorProto.FLOAT), last))
    whole = tables.constant(f"{stem}:width", np.array([weights.codes[0].size], np.int64))
    row = write("Reshape", scaled, write("Concat", found, whole, axis=0))
    if weights.columns < weights.codes[0].size:
        first, end = (
            tables.constant(f"modelpack.{value}", np.array([value], np.int64)) for value in (0, weights.columns)
        )
        row = write("Slice", row, first, end, last)
    write.nodes[-1].output[0] = node.output[0]
    write.nodes[-1].name = node.name
    return write.nodes


class _Writer:
    """Makes nodes with one output each, named after a layer."""

    def __init__(self, layer: str) -> None:
        self.layer = layer
        self.nodes: list[NodeProto] = []

    def __call__(self, operator: str, *inputs: str, **attributes: Any) -> str:
        output = f"{self.layer}:{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [output], name=output, **attributes))
        return output

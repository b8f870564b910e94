"""Matrix products with weights in blocks, by onnxruntime's own operator ``com.microsoft.MatMulNBits``.

It reads codes as they are packed and multiplies without unpacking the whole table. The operator belongs to onnxruntime;
`blocked` writes the same in standard operators.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from onnx import NodeProto, helper

from modelpack.numerics.quantization.weights import blocks

if TYPE_CHECKING:
    from modelpack.numerics.quantization.tables import Tables
    from modelpack.numerics.quantization.weights.blocks import Blocks

DOMAIN = "com.microsoft"

ACCURACY = 4
"""``accuracy_level``: inputs may be rounded to int8 in blocks, which the fast kernels of processors do."""


def product(tables: Tables, node: NodeProto, stem: str, weights: Blocks) -> list[NodeProto]:
    """Give the nodes that stand for a ``MatMul`` or ``Gemm``.

    Args:
        tables: Takes the constants.
        node: The float layer.
        stem: Begins the names of the constants, which layers may share.
        weights: ``(n, k)``, rounded.
    """
    grid, name = weights.grid, node.name
    bias = node.input[2] if len(node.input) > 2 else ""
    output = f"{name}:product" if bias else node.output[0]
    inputs = [
        node.input[0],
        tables.constant(f"{stem}:codes", blocks.pack(weights.codes, grid.bits)),
        # Behind a cast they would not be there yet when the kernel packs its weights without optimization: noise.
        tables.constant(f"{stem}:scales", grid.scales.astype(np.float32)),
        tables.constant(f"{stem}:zeros", blocks.pack(grid.zeros.astype(np.uint8), grid.bits)),
    ]
    size = weights.codes.shape[2]
    made = helper.make_node(
        "MatMulNBits",
        inputs,
        [output],
        name=name,
        domain=DOMAIN,
        K=weights.columns,
        N=len(weights.codes),
        bits=grid.bits,
        block_size=size,
        accuracy_level=ACCURACY,
    )
    if not bias:
        return [made]
    return [made, helper.make_node("Add", [output, bias], list(node.output), name=f"{name}:bias")]

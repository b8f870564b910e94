"""Matrix products with weights in blocks, in standard operators: ``DequantizeLinear`` with a block size (opset 21).

onnxruntime fuses the pair into its kernel for packed weights, which rounds inputs to int8 in blocks unless the session
option ``session.qdq_matmulnbits_accuracy_level`` says otherwise; another runtime that knows opset 21 unpacks them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import ml_dtypes
import numpy as np
from onnx import NodeProto, helper

from modelpack.numerics.quantization.layers import channel_axis

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from modelpack.numerics.quantization.tables import Tables
    from modelpack.numerics.quantization.weights.blocks import Blocks

OPSET = 21
"""First opset with blocks and 4-bit integers."""

_INTEGERS = {4: np.dtype(ml_dtypes.uint4), 8: np.dtype(np.uint8)}


def product(tables: Tables, node: NodeProto, stem: str, weights: Blocks) -> list[NodeProto]:
    """Give the nodes that stand for a ``MatMul`` or ``Gemm``.

    Args:
        tables: Takes the constants and the nodes that unpack them.
        node: The float layer.
        stem: Begins the names of the constants, which layers may share.
        weights: ``(n, k)``, rounded.
    """
    grid, integer = weights.grid, _INTEGERS[weights.grid.bits]
    by_columns = channel_axis(node) == 1
    flat = weights.codes.reshape(len(weights.codes), -1)[:, : weights.columns]

    def turned(values: NDArray[np.generic]) -> NDArray[np.generic]:
        return values.T if by_columns else values

    inputs = [
        tables.constant(f"{stem}:blocks", turned(flat).astype(integer)),
        tables.constant(f"{stem}:blocks:scale", turned(grid.scales).astype(np.float32)),
        tables.constant(f"{stem}:blocks:zero", turned(grid.zeros).astype(integer)),
    ]
    output = f"{stem}:blocks:dequantized"
    tables.unpack(
        helper.make_node(
            "DequantizeLinear",
            inputs,
            [output],
            name=f"{stem}:blocks/DequantizeLinear",
            axis=0 if by_columns else 1,
            block_size=weights.codes.shape[2],
        )
    )
    layer = NodeProto.FromString(node.SerializeToString())
    layer.input[1] = output
    return [layer]

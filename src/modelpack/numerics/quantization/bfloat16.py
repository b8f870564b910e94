"""Weights stored as bfloat16: half the bytes, the range of float32, and three significant digits.

onnxruntime has hardly any kernel for bfloat16 on processors (1.31: none for products, convolutions, additions), so that
computation stays float32: each table is cast while the graph is loaded, and takes as much memory as before.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from onnx import ModelProto, TensorProto

from modelpack.numerics import onnxfile
from modelpack.numerics.quantization import operators
from modelpack.numerics.quantization.settings import Outcome
from modelpack.numerics.quantization.tables import Tables

if TYPE_CHECKING:
    from collections.abc import Sequence

    from modelpack.numerics.quantization.layers import Layer
    from modelpack.numerics.quantization.settings import Evidence, Settings

FEWEST = 64
"""Elements below which a constant stays as it is: its ``Cast`` would take as many bytes as it saves."""

NOTE = (
    "weights are stored as bfloat16 and become float32 while the model is loaded: half the file, the memory and speed "
    "of the float model"
)


def quantize(model: ModelProto, found: Sequence[Layer], settings: Settings, _evidence: Evidence) -> Outcome:
    """Store every large constant as bfloat16, but for those of nodes that stay float32.

    Args:
        model: A prepared graph; it stays as it is.
        found: Its layers, chosen.
        settings: Names the operators that stay float32.
        _evidence: Nothing is asked of data.

    Raises:
        StageError: When no node has an operator that is to stay float32.
    """
    twin = onnxfile.copied(model)
    apart = {layer.name for layer in found if not layer.quantized} | operators.named(model, settings.keep_operators)
    fixed, tables = onnxfile.constants(twin.graph), Tables(twin.graph)
    for node in twin.graph.node:
        if node.name in apart:
            continue
        for place, name in enumerate(node.input):
            tensor = fixed.get(name)
            if tensor is not None and tensor.data_type == TensorProto.FLOAT and math.prod(tensor.dims) >= FEWEST:
                node.input[place] = tables.bfloat16(name, np.asarray(onnxfile.array(tensor), dtype=np.float32))
    tables.finish(list(twin.graph.node))
    return Outcome(twin, notes=(NOTE,))

"""Quantizers of other projects behind the interface of our own methods, to compare with.

They choose layers, ranges and rounding by their own rules: of a recipe's settings they get those that they know.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from onnx import TensorProto

from modelpack.numerics import onnxfile
from modelpack.numerics.quantization.backends import nncf, ort

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from onnx import ModelProto

    from modelpack.numerics.quantization.layers import Layer
    from modelpack.numerics.quantization.settings import Evidence, Outcome, Settings

BACKENDS: Mapping[str, Mapping[str, Callable[[ModelProto, Sequence[Layer], Settings, Evidence], Outcome]]] = {
    "ort": {"static": ort.static, "dynamic": ort.dynamic},
    "nncf": {"static": nncf.static},
}
"""Backend → method → function."""


def quantized(found: Sequence[Layer], made: ModelProto) -> list[Layer]:
    """Say of each layer whether a backend quantized it: the graph then no longer holds its float weights.

    Args:
        found: The layers of the float graph, as our own method would choose them.
        made: What the backend made of it.
    """
    floating = {
        tensor.name
        for graph in onnxfile.graphs(made.graph)
        for tensor in onnxfile.constants(graph).values()
        if tensor.data_type in (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE)
    }
    return [
        replace(layer, reason=(layer.reason or "the backend left it alone") if layer.weights in floating else "")
        for layer in found
    ]

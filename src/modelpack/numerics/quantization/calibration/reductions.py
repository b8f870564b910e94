"""Smallest and largest values, reduced inside the graph: no activation leaves it, and its layers stay fused.

The cheapest reductions known for onnxruntime: pooling over all of an image keeps the blocked layout of convolutions,
and where an operator bounds values by 0 their minimum need not be sought. Reductions lose NaN, sums do not; and NaN
that goes into layers comes out of them, so that only tensors from which no such way leads to another sum need one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from onnx import ModelProto, TensorProto, ValueInfoProto, helper, numpy_helper

from modelpack.numerics import onnxfile

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from modelpack.numerics.quantization.calibration.taps import Tap

_HANDS_ON = frozenset(
    {"Add", "AveragePool", "Clip", "Concat", "Conv", "ConvTranspose", "Div", "Flatten", "Gelu", "Gemm",
     "GlobalAveragePool", "HardSigmoid", "HardSwish", "Identity", "LayerNormalization", "LeakyRelu", "MatMul", "Mul",
     "ReduceMean", "ReduceSum", "Relu", "Reshape", "Sigmoid", "Softmax", "Squeeze", "Sub", "Tanh", "Transpose",
     "Unsqueeze"}
)  # fmt: skip
"""Operators that give NaN wherever they read it."""

_POINTWISE = frozenset({"Add", "BatchNormalization", "Clip", "LeakyRelu", "Mul", "Relu", "Sigmoid"})


@dataclass(frozen=True)
class Reductions:
    """A graph that gives the extremes of its tensors, and which of its outputs gives what of which tensor.

    Attributes:
        model: The graph.
        lows: Smallest values.
        highs: Largest values.
        sums: Sums, which are NaN where a value is.
        left_out: How many values did not count.
    """

    model: ModelProto
    lows: dict[str, str] = field(default_factory=dict)
    highs: dict[str, str] = field(default_factory=dict)
    sums: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)


def reductions(model: ModelProto, taps: Sequence[Tap], mask: str | None) -> Reductions:
    """Copy a model so that it gives the extremes of some tensors, and nothing else.

    Args:
        model: A prepared graph.
        taps: The tensors.
        mask: The input that tells padded positions, if any tensor has such.
    """
    made = Reductions(onnxfile.copied(model))
    writer = _Writer(made.model, mask)
    images = _images(model)
    for tap in taps:
        value = writer.kept(tap, made)
        wide = tap.name in images and tap.positive and tap.whole
        made.highs[writer.node("GlobalMaxPool" if wide else "ReduceMax", value, scalar=not wide)] = tap.name
        if not tap.positive:
            made.lows[writer.node("ReduceMin", value, scalar=True)] = tap.name
        if not tap.whole:
            made.sums[writer.node("ReduceSum", value, scalar=True)] = tap.name
    for name in ends(model, [tap.name for tap in taps if tap.whole]):
        made.sums[writer.node("ReduceSum", name, scalar=True)] = name
    del made.model.graph.output[:]
    outputs = (*made.highs, *made.lows, *made.sums, *made.left_out)
    made.model.graph.output.extend(ValueInfoProto(name=name) for name in outputs)
    return made


class _Writer:
    """Appends nodes to a graph."""

    def __init__(self, model: ModelProto, mask: str | None) -> None:
        self.graph, self.count = model.graph, 0
        self.zero = self._constant("zero", np.zeros((), np.float32))
        self.mask = self.node("Cast", mask, to=TensorProto.BOOL) if mask is not None else ""

    def _constant(self, label: str, values: NDArray[np.generic]) -> str:
        name = f"modelpack.{label}"
        self.graph.initializer.append(numpy_helper.from_array(values, name))
        return name

    def node(self, operator: str, *inputs: str, scalar: bool = False, **attributes: int) -> str:
        self.count += 1
        output = f"modelpack.{operator}.{self.count}"
        node = helper.make_node(operator, inputs, [output], name=output)
        settings = {**attributes, "keepdims": 0} if scalar else attributes
        node.attribute.extend(helper.make_attribute(key, value) for key, value in settings.items())
        self.graph.node.append(node)
        return output

    def kept(self, tap: Tap, made: Reductions) -> str:
        """Put zero, which every grid holds, in place of what does not count."""
        value = tap.name
        if tap.axes:
            lead = [0] * tap.axes if tap.axes > 1 else [-1]
            shape = self._constant(f"shape.{self.count}", np.array(lead + [1] * (tap.rank - tap.axes), np.int64))
            value = self.node("Where", self.node("Reshape", self.mask, shape), value, self.zero)
        if tap.floor is not None:
            bound = self._constant(f"floor.{self.count}", np.array(tap.floor, np.float32))
            counts = self.node("Greater", value, bound)
            hidden = self.node("Cast", self.node("Not", counts), to=TensorProto.INT64)
            made.left_out[self.node("ReduceSum", hidden, scalar=True)] = tap.name
            value = self.node("Where", counts, value, self.zero)
        return value


def _images(model: ModelProto) -> set[str]:
    """Name the tensors of rows, channels, height and width: what convolutions read and make, and what follows."""
    found: set[str] = set()
    for node in model.graph.node:
        if node.op_type == "Conv" or (node.op_type in _POINTWISE and any(name in found for name in node.input)):
            found |= set(node.output)
    return found


def ends(model: ModelProto, names: Sequence[str]) -> list[str]:
    """Choose tensors whose sums show whether a named one holds NaN: the outputs, and what is cut off from them."""
    taken = [item.name for item in model.graph.output if item.type.tensor_type.elem_type == TensorProto.FLOAT]
    wanted, reached = set(names), set(taken)
    for node in reversed(model.graph.node):
        alone = [name for name in node.output if name in wanted and name not in reached]
        taken += alone
        reached |= set(alone)
        if node.op_type in _HANDS_ON and reached & set(node.output):
            reached |= set(node.input)
    return taken + [name for name in names if name not in reached]

"""A correction that made it worse: biases were moved to undo the shift of rounding, and now they shift more.

Each layer's correction is right for the inputs it was measured on; corrected all at once, the layers undo the same
shift several times over. What tells is the model with the float model's own biases in their place.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from onnx import numpy_helper

from modelpack.errors import StageError, listed
from modelpack.numerics import onnxfile
from modelpack.numerics.checks.finding import failed, passed, unchecked
from modelpack.numerics.checks.subject import opened
from modelpack.numerics.measure.comparison import decibels
from modelpack.numerics.quantization.rewriting.prepare import prepare
from modelpack.numerics.stored import INTEGER, Reader, kind_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from numpy.typing import NDArray
    from onnx import ModelProto, NodeProto

    from modelpack.numerics.checks.finding import Finding
    from modelpack.numerics.checks.subject import Subject

WORSE = 3.0
"""Decibels that a correction may cost; fewer are within what a few rows tell."""
ROUNDING = 1.0
"""Steps that rounding alone may move a bias by."""


@dataclass(frozen=True)
class Moved:
    """A layer's bias beside the float one, in steps of its own grid.

    Attributes:
        layer: The layer's name.
        tensor: The bias as it is stored.
        plain: The float bias, rounded to the same grid.
        steps: By how much they differ, at most.
    """

    layer: str
    tensor: str
    plain: NDArray[np.int32]
    steps: float


def check(subject: Subject) -> Finding:
    """Biases that were corrected are better than the float model's own."""
    if not subject.quantized:
        return unchecked("the model is in floating point throughout")
    if subject.reference is None:
        return unchecked("there is no float model to compare with")
    if not subject.feeds or subject.made_up:
        return unchecked("made-up rows say nothing about quality")
    if not any(kind_of(item) == "INT32" and len(item.dims) == 1 for item in subject.model.graph.initializer):
        return unchecked("it has no quantized bias")
    try:
        plain, _ = prepare(subject.reference)
    except StageError as error:
        return unchecked(f"the float model cannot be read: {error.what}")
    found = moved(subject.model, plain)
    if not found:
        return unchecked("no quantized bias has its counterpart in the float model")
    corrected = [item for item in found if item.steps > ROUNDING]
    if not corrected:
        return passed("every bias is the float model's, rounded")
    return _compared(subject, corrected)


def _compared(subject: Subject, corrected: list[Moved]) -> Finding:
    now = _quality(subject.errors)
    before = _quality(subject.errors_of(opened(without(subject.model, corrected), subject.device)))
    told = f"{now:.1f} dB with its {len(corrected)} corrected biases, {before:.1f} dB with the float model's"
    if now >= before - WORSE:
        return passed(told)
    furthest = sorted(corrected, key=lambda item: -item.steps)
    return failed(
        f"the correction made it worse: {told}",
        "leave the correction out, or correct one layer after the other against everything quantized before it",
        listed([item.layer for item in furthest]),
    )


def _quality(errors: Mapping[str, tuple[float, float]]) -> float:
    """Give the signal-to-noise ratio of all outputs together."""
    return decibels(sum(signal for signal, _ in errors.values()), sum(noise for _, noise in errors.values()))


def moved(model: ModelProto, plain: ModelProto) -> list[Moved]:
    """Pair every quantized bias with the float one of the layer of the same name, or else the same output."""
    floats, reader = Reader(plain), Reader(model)
    known: dict[str, NodeProto] = {}
    for node in plain.graph.node:
        known |= {name: node for name in (node.name, *node.output) if name}
    found = []
    for node in model.graph.node:
        twin = known.get(node.name) or next((known[name] for name in node.output if name in known), None)
        item = _moved(node, twin, reader, floats) if twin is not None else None
        if item is not None:
            found.append(item)
    return found


def _moved(node: NodeProto, twin: NodeProto, reader: Reader, floats: Reader) -> Moved | None:
    scale: NDArray[np.generic]
    if node.op_type == "QLinearConv" and len(node.input) > 8:
        parts = [reader.constant(node, place) for place in (INTEGER["QLinearConv"][2], INTEGER["QLinearConv"][3])]
        if None in parts:
            return None
        tensor = reader.constant(node, 8)
        scale = np.multiply(*(onnxfile.array(part).astype(np.float64) for part in parts if part is not None))
    elif node.op_type in ("Conv", "ConvTranspose", "Gemm") and len(node.input) > 2:
        source = reader.origin(node.input[2])
        if source.scale is None:
            return None
        tensor, scale = source.tensor, onnxfile.array(source.scale)
    else:
        return None
    if tensor is None or kind_of(tensor) != "INT32":
        return None
    held = onnxfile.array(tensor).astype(np.float64)
    right = floats.constant(twin, 2)
    bias = onnxfile.array(right).astype(np.float64).reshape(-1) if right is not None else np.zeros(1)
    if bias.size not in (1, held.size):
        return None
    exact = bias / np.asarray(scale, np.float64).reshape(-1)
    exact = np.broadcast_to(np.clip(exact, -(2.0**31) + 1, 2.0**31 - 1), held.shape)
    steps = float(np.abs(held - exact).max(initial=0.0))
    return Moved(node.name or node.output[0], tensor.name, np.rint(exact).astype(np.int32), steps)


def without(model: ModelProto, corrected: Iterable[Moved]) -> ModelProto:
    """Put the float model's biases back, on the same grids."""
    twin = onnxfile.copied(model)
    plain = {item.tensor: item.plain for item in corrected}
    for tensor in twin.graph.initializer:
        if tensor.name in plain:
            tensor.CopyFrom(numpy_helper.from_array(plain[tensor.name], tensor.name))
    return twin

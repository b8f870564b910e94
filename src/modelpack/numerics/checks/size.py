"""Not smaller: the quantized file takes as many bytes as the float one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from modelpack.errors import listed
from modelpack.numerics import onnxfile
from modelpack.numerics.checks.finding import failed, passed, unchecked
from modelpack.numerics.stored import bits, kind_of, nbytes

if TYPE_CHECKING:
    from modelpack.numerics.checks.finding import Finding
    from modelpack.numerics.checks.subject import Subject

SMALLER = 0.9
"""A quantized file must be at most this fraction of the float one."""


def check(subject: Subject) -> Finding:
    """The file is smaller than the float one."""
    if not subject.quantized:
        return unchecked("the model is in floating point throughout")
    if subject.reference is not None:
        now, before = onnxfile.size(subject.model), onnxfile.size(subject.reference)
        beside = f"{now:,} bytes from {before:,}"
    else:
        now = sum(nbytes(tensor) for graph in onnxfile.graphs(subject.model.graph) for tensor in graph.initializer)
        before = _as_floats(subject)
        beside = f"{now:,} bytes of tensors, in float32 its weights alone would take {before:,}"
    if before == 0:
        return unchecked("the model has no layer with constant weights")
    if now <= SMALLER * before:
        return passed(f"{now / before:.2f} of the float model's size")
    kept = _kept_as_floats(subject)
    if kept:
        return failed(
            f"the file did not become smaller: {beside}; quantized weights are still stored as floats",
            "fold QuantizeLinear into the weights: store the integers, with DequantizeLinear alone behind them",
            listed(kept),
        )
    return failed(
        f"the file did not become smaller: {beside}",
        "quantize more layers, drop tensors that nothing reads, or keep the float model",
    )


def _as_floats(subject: Subject) -> int:
    """Give the bytes that the layers' weights, and tables that are looked up, would take in float32."""
    weights = {layer.weights.name: layer.elements for layer in subject.layers}
    for graph in onnxfile.graphs(subject.model.graph):
        held = {item.name: item for item in graph.initializer}
        for node in graph.node:
            table = held.get(node.input[0]) if node.op_type == "Gather" and node.input else None
            if table is not None and bits(kind_of(table)) <= 32 and len(table.dims) == 2:
                weights[table.name] = table.dims[0] * table.dims[1]
    return 4 * sum(weights.values())


def _kept_as_floats(subject: Subject) -> list[str]:
    """Name the layers whose weights are rounded at every run."""
    return [layer.name for layer in subject.layers if bits(layer.kind) < 16 and bits(kind_of(layer.weights)) >= 16]

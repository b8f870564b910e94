"""Saturation on the target: processors with AVX2 and no VNNI add pairs of products in 16 bits, and cut them off."""

from __future__ import annotations

from typing import TYPE_CHECKING

from modelpack.errors import listed
from modelpack.numerics import onnxfile
from modelpack.numerics.checks.finding import failed, passed, unchecked, warned
from modelpack.numerics.quantization import hardware
from modelpack.numerics.quantization.saturation.pairs import shares
from modelpack.numerics.stored import kind_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from onnx import NodeProto

    from modelpack.numerics.checks.finding import Finding
    from modelpack.numerics.checks.subject import Subject
    from modelpack.numerics.stored import Layer

HARMLESS = 1e-4
"""Share of a layer's pairs that may be cut off before its outputs suffer."""

_LAYERS = ("Conv", "Gemm", "MatMul")


def check(subject: Subject) -> Finding:
    """No layer's sums of products are cut off on the hardware it shall run on."""
    target = hardware.profile(subject.target, subject.device)
    if not any(layer.activations == "UINT8" for layer in subject.layers):
        return unchecked("no layer multiplies unsigned bytes with signed ones")
    if not target.saturates:
        return passed(f"{target.name} adds products in 32 bits")
    chosen = [layer.name for layer in subject.layers if _can_be_followed(layer, subject)]
    if not chosen:
        return unchecked("none of its layers stands between QDQ pairs with signed weights")
    if subject.few is None:
        return unchecked(subject.lacks or "there are no rows to run it on")
    found = shares(subject.model, chosen, [subject.few], device=subject.device)
    if not found:
        return passed(f"no pair of products leaves 16 bits on {target.name}{' with made-up rows' * subject.made_up}")
    worst = max(found.values())
    told = (
        f"{len(found)} of {len(chosen)} layers saturate on {target.name} without VNNI: up to {worst:.2%} of the sums "
        "of two products are cut off at 16 bits"
    )
    remedy = "quantize with `portable: true` (`reduce_range=True` in other tools), or run it where VNNI is"
    where = listed(sorted(found, key=lambda name: -found[name]))
    return (failed if worst > HARMLESS else warned)(told, remedy, where)


def _can_be_followed(layer: Layer, subject: Subject) -> bool:
    """Whether a layer of the main graph reads rounded values and constant weights straight from their pairs."""
    makers: Mapping[str, NodeProto] = onnxfile.producers(subject.model.graph)
    held = {item.name for item in subject.model.graph.initializer}
    if layer.operator not in _LAYERS or layer.activations != "UINT8" or kind_of(layer.weights) != "INT8":
        return False
    before = [makers.get(name) for name in layer.node.input[:2]]
    pairs = [node for node in before if node is not None and node.op_type == "DequantizeLinear"]
    if len(pairs) != 2 or not layer.node.name or any(len(node.input) < 3 for node in pairs):
        return False
    return pairs[0].input[2] in held and pairs[1].input[0] in held

"""Stale shapes: what the file says about a value contradicts what its nodes give.

Quantizers and converters believe the stored shapes, and fail on them or, worse, choose the wrong axis.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from modelpack.errors import listed
from modelpack.numerics import onnxfile
from modelpack.numerics.checks.finding import failed, passed, unchecked

if TYPE_CHECKING:
    from collections.abc import Mapping

    from onnx import GraphProto, ModelProto, ValueInfoProto

    from modelpack.numerics.checks.finding import Finding
    from modelpack.numerics.checks.subject import Subject

Shape = tuple[int, tuple[int | None, ...] | None]
"""Element type (0 when unknown), and sizes (None for unknown ones, or when even their number is)."""


def check(subject: Subject) -> Finding:
    """The stored shapes are those that inference finds."""
    model = subject.model
    if onnxfile.size(model) > onnxfile.LIMIT:
        return unchecked("shapes cannot be inferred in a model above 2 GB")
    stored = {item.name: _shape(item) for item in (*model.graph.value_info, *model.graph.output)}
    if not stored:
        return passed()
    known = _inferred(model)
    wrong = [
        f"{name} ({_told(shape)} stored, {_told(known[name])} computed)"
        for name, shape in stored.items()
        if name in known and _contradicts(shape, known[name])
    ]
    if not wrong:
        return passed()
    return failed(
        f"{len(wrong)} stored shapes contradict what the graph computes",
        "remove `graph.value_info` and infer shapes again; `modelpack` does so in its steps export and optimize",
        listed(wrong),
    )


def _inferred(model: ModelProto) -> Mapping[str, Shape]:
    """Infer all shapes from the inputs and constants alone."""
    bare = onnxfile.copied(model)
    for item in bare.graph.output:
        item.type.tensor_type.ClearField("shape")
    graph: GraphProto = onnxfile.infer(bare).graph
    known = {item.name: _shape(item) for item in (*graph.value_info, *graph.output, *graph.input)}
    return known | {item.name: (item.data_type, tuple(item.dims)) for item in graph.initializer}


def _shape(value: ValueInfoProto) -> Shape:
    kind = value.type.tensor_type
    if not kind.HasField("shape"):
        return kind.elem_type, None
    return kind.elem_type, tuple(size.dim_value if size.HasField("dim_value") else None for size in kind.shape.dim)


def _contradicts(one: Shape, two: Shape) -> bool:
    if one[0] and two[0] and one[0] != two[0]:
        return True
    if one[1] is None or two[1] is None:
        return False
    if len(one[1]) != len(two[1]):
        return True
    return any(a is not None and b is not None and a != b for a, b in zip(one[1], two[1], strict=True))


def _told(shape: Shape) -> str:
    return "[" + ", ".join("?" if size is None else str(size) for size in shape[1] or ()) + "]"

"""Unused weights left in: tensors that nothing reads, most often float weights beside their quantized copies."""

from __future__ import annotations

from typing import TYPE_CHECKING

from modelpack.errors import listed
from modelpack.numerics import onnxfile
from modelpack.numerics.checks.finding import failed, passed
from modelpack.numerics.stored import kind_of, nbytes

if TYPE_CHECKING:
    from modelpack.numerics.checks.finding import Finding
    from modelpack.numerics.checks.subject import Subject

NOTABLE = 0.01
FEWEST = 1024
"""Share of the tensors' bytes, and bytes, from which unread ones count; exporters leave a few numbers behind."""

_REAL = ("FLOAT", "FLOAT16", "BFLOAT16", "DOUBLE")


def check(subject: Subject) -> Finding:
    """Every weight in the file is read."""
    whole = subject.model.graph
    read = set(onnxfile.consumers(whole))
    read |= {item.name for graph in onnxfile.graphs(whole) for item in graph.output}
    tensors = [tensor for graph in onnxfile.graphs(whole) for tensor in graph.initializer]
    unread = [item for item in tensors if item.name not in read and kind_of(item) in _REAL]
    wasted, total = sum(map(nbytes, unread)), sum(map(nbytes, tensors))
    if wasted <= max(NOTABLE * total, FEWEST):
        return passed()
    beside = " beside the quantized ones" if subject.quantized else ""
    return failed(
        f"{len(unread)} float tensors that nothing reads are left in{beside}: {wasted:,} of {total:,} bytes",
        "drop the initializers that no node reads, for example with `modelpack compress` and a step `optimize`",
        listed([item.name for item in unread]),
    )

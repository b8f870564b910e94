"""Nothing or little quantized: the graph has quantized parts, but most of its weights are as they were.

Tools that look for layers by type or name pass over a subclass without a word; what is left is a file with QDQ pairs
around one layer.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from modelpack.errors import listed
from modelpack.numerics.checks.finding import failed, passed, unchecked

if TYPE_CHECKING:
    from modelpack.numerics.checks.finding import Finding
    from modelpack.numerics.checks.subject import Subject

ENOUGH = 0.5
"""Share of the layers' weights that must take fewer than 32 bits."""


def check(subject: Subject) -> Finding:
    """Most of the weights take fewer bits, of the layers that were not left out on purpose."""
    if not subject.quantized:
        return unchecked("the model is in floating point throughout")
    wanted = [layer for layer in subject.layers if layer.name not in subject.left_out]
    if not wanted:
        return unchecked("the model has no layer with constant weights that was to be quantized")
    share = sum(layer.elements for layer in wanted if layer.reduced) / max(sum(layer.elements for layer in wanted), 1)
    every = Counter(layer.operator for layer in wanted)
    done = Counter(layer.operator for layer in wanted if layer.reduced)
    told = ", ".join(f"{done[name]} of {count} {name}" for name, count in sorted(every.items()))
    if share >= ENOUGH:
        return passed(f"{told}: {share:.0%} of the weights")
    left = sorted((layer for layer in wanted if not layer.reduced), key=lambda layer: -layer.elements)
    return failed(
        f"only {told} have quantized weights: {share:.0%} of them by number",
        "the quantizer did not recognize the other layers: export them as plain Conv, Gemm and MatMul, or use another",
        listed([layer.name for layer in left]),
    )

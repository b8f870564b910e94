"""Per-tensor depthwise collapse: one scale for channels whose weights differ by orders of magnitude.

In a depthwise convolution each channel has a filter of its own; after a batch norm is folded in, their ranges may
differ a hundredfold, and one scale leaves the small ones a few steps (Nagel et al. 2019, arXiv 1906.04721).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from modelpack.errors import listed
from modelpack.numerics import onnxfile
from modelpack.numerics.checks.finding import failed, passed, unchecked
from modelpack.numerics.stored import bits, kind_of

if TYPE_CHECKING:
    from modelpack.numerics.checks.finding import Finding
    from modelpack.numerics.checks.subject import Subject
    from modelpack.numerics.stored import Layer

STEPS = 8
"""A channel whose largest weight has fewer steps is collapsed: its weights are rounded by a sixteenth and more."""
MOST = 0.2
"""Share of a layer's channels that may be collapsed; some are dead in any trained network."""

_CONVOLUTIONS = ("Conv", "QLinearConv", "ConvInteger")


def check(subject: Subject) -> Finding:
    """Depthwise convolutions have a scale per channel, or channels of one size."""
    grouped = [layer for layer in subject.layers if _is_grouped(layer)]
    if not grouped:
        return unchecked("it has no quantized depthwise or grouped convolution")
    shares = {layer.name: _collapsed(layer) for layer in grouped}
    wrong = sorted((name for name, share in shares.items() if share > MOST), key=lambda name: -shares[name])
    if not wrong:
        return passed()
    worst = shares[wrong[0]]
    return failed(
        f"{len(wrong)} of {len(grouped)} depthwise convolutions have one scale for channels of very different ranges: "
        f"up to {worst:.0%} of the channels keep less than {STEPS} steps",
        "quantize weights per channel (`per_channel=True`), or equalize the layers before",
        listed(wrong),
    )


def _is_grouped(layer: Layer) -> bool:
    grouped = layer.operator in _CONVOLUTIONS and onnxfile.attribute(layer.node, "group", 1) > 1
    return grouped and bits(layer.kind) <= 8 and len(layer.weights.dims) > 2


def _collapsed(layer: Layer) -> float:
    """Give the share of channels that keep only a few steps; 0 with a scale per channel."""
    if layer.scale is None or math.prod(layer.scale.dims) > 1:
        return 0.0
    values = onnxfile.array(layer.weights).astype(np.float64)
    if bits(kind_of(layer.weights)) > 8:
        steps = np.rint(values / float(onnxfile.array(layer.scale).reshape(-1)[0]))
    else:
        steps = values - (float(onnxfile.array(layer.zero).reshape(-1)[0]) if layer.zero is not None else 0.0)
    largest = np.abs(steps).reshape(len(steps), -1).max(axis=1)
    return float((largest < STEPS).mean())

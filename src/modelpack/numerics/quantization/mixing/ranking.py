"""Which layers to keep in float first: those that remove most of the output's error per time lost."""

from __future__ import annotations

from typing import TYPE_CHECKING

from modelpack.numerics import rows
from modelpack.numerics.quantization.mixing import cost, sensitivity, switches, trials
from modelpack.numerics.quantization.mixing.sensitivity import Noise

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from modelpack.numerics.quantization.mixing.cost import Costs
    from modelpack.numerics.quantization.mixing.flow import Flow
    from modelpack.numerics.quantization.settings import Evidence

CANDIDATES = 64
"""Layers that may be kept: those that bring most of the error."""

SMALLEST = 0.01
"""Share of the quantized graph's time below which what a layer costs is not told apart from nothing."""


def ranked(flow: Flow, layers: Sequence[str], most: int, evidence: Evidence) -> list[str]:
    """Order the layers that may be kept in float by what is measured of them, errors without any correction.

    Args:
        flow: How layers are quantized.
        layers: Names of the layers that can be.
        most: How many layers to keep.
        evidence: Rows to measure on.

    Raises:
        StageError: When there are no rows, or onnxruntime cannot run a graph.
    """
    inputs = trials.inputs_of(flow.model)
    _, given = rows.peeked(evidence.read("read rows to measure layers on", None), inputs)
    feeds = sensitivity.spread(given, inputs)
    board = switches.build(flow.model, flow.write(layers), flow.marks(layers))
    noise = Noise(board, flow.marks, feeds, evidence.device)
    errors = noise.alone(layers, lambda names: evidence.track(names, "measure each layer's error"))
    costs = cost.measure(
        flow.model,
        layers,
        flow.marks,
        lambda some: flow.align(flow.write(some)),
        rows.take(feeds[0], inputs, 1),
        device=evidence.device,
    )
    return order(flow, errors, costs, most)


def order(flow: Flow, errors: Mapping[str, float], costs: Costs, most: int) -> list[str]:
    """Keep layers one after the other, each the one that removes most error per time lost, given those before it.

    Args:
        flow: How layers are quantized.
        errors: What each layer brings.
        costs: What keeping layers costs.
        most: How many layers to keep.
    """
    left = sorted(errors, key=lambda name: -errors[name])[:CANDIDATES]
    least = SMALLEST * costs.total

    def spent(kept: Sequence[str]) -> float:
        quantized = [name for name in errors if name not in kept]
        return costs.of(kept, cost.crossings(flow.model, flow.marks(quantized)))

    found: list[str] = []
    now = spent(found)
    while left and len(found) < most:
        times = {name: spent([*found, name]) for name in left}
        taken = max(left, key=lambda name: errors[name] / max(times[name] - now, least))
        found.append(taken)
        left.remove(taken)
        now = times[taken]
    return found

"""Accuracy-controlled mixed precision: as few layers as possible stay float, the cheapest in measured time.

1. The error that each layer brings alone is measured (`sensitivity`), and the time that it saves (`cost`).
2. Layers are kept one after the other, by error removed per time lost; a neighbour of a kept one loses less.
3. Growing sets of them are measured: outputs on all rows, times in turns with the float model and with each other.
4. The fastest set within the budget is taken (`front`); where times do not differ beyond noise, the smallest.

The sets' graphs have the constants of the one that keeps nothing, corrections included; those of the set that is taken
are corrected anew. Times differ between machines and runs, and so may the choice where sets are near each other; no
time is part of the result.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Protocol

from modelpack.errors import StageError
from modelpack.numerics import rows
from modelpack.numerics.quantization.mixing import cost, front, sensitivity, switches, trials
from modelpack.numerics.quantization.mixing.sensitivity import Noise

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from onnx import ModelProto

    from modelpack.numerics.quantization.mixing.cost import Costs
    from modelpack.numerics.quantization.mixing.front import Point
    from modelpack.numerics.quantization.qdq import Marks
    from modelpack.numerics.quantization.settings import Budget, Evidence, Outcome

SIZES = (0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
"""Numbers of layers that are tried, as far as there are more layers."""

CANDIDATES = 64
"""Layers that may be kept: those that bring most of the error."""

SMALLEST = 0.01
"""Share of the quantized graph's time below which what a layer costs is not told apart from nothing."""


@dataclass(frozen=True)
class Draft:
    """A quantized graph before the last step.

    Attributes:
        outcome: The graph, and what there is to tell.
        risky: What the last step is to know of layers that may overflow.
    """

    outcome: Outcome
    risky: Mapping[str, float] = field(default_factory=dict)


class Flow(Protocol):
    """What is done to a model, whichever of its layers are quantized."""

    @property
    def model(self) -> ModelProto:
        """The float graph that is quantized."""

    def marks(self, chosen: Sequence[str], /) -> Marks:
        """Give what is rounded when some layers are quantized."""

    def write(self, chosen: Sequence[str], /) -> ModelProto:
        """Make the graph in which they are, without any correction."""

    def correct(self, chosen: Sequence[str], /) -> Draft:
        """Make it as the settings say, but for the last step."""

    def align(self, model: ModelProto, /) -> ModelProto:
        """Give a graph the form in which it runs."""

    def finish(self, draft: Draft, chosen: Sequence[str], /) -> Outcome:
        """Take the last step."""


def quantize(reference: ModelProto, flow: Flow, layers: Sequence[str], budget: Budget, evidence: Evidence) -> Outcome:
    """Quantize all layers but those that a budget cannot spare.

    Args:
        reference: The float model that the result must stay close to.
        flow: How its layers are quantized.
        layers: Names of the layers that can be.
        budget: How close.
        evidence: Rows to measure on.

    Returns:
        The outcome, with the table ``front`` of everything that was measured.

    Raises:
        StageError: When no mixture is within the budget, with the one that comes nearest.
    """
    trials.check(reference, budget, evidence)
    whole = flow.correct(layers)
    kept_first = ranked(flow, layers, whole.outcome.model, evidence)
    sets = [tuple(kept_first[:size]) for size in SIZES if size < max(len(layers), 1)]
    drafts = [whole.outcome.model, *(_lent(flow.write(_left(layers, kept)), whole.outcome.model) for kept in sets[1:])]
    points = trials.measure(reference, dict(zip(sets, map(flow.align, drafts), strict=True)), budget, evidence)
    chosen = front.choose(points, budget)
    if chosen is None:
        raise _unmet(points, budget, len(layers))
    place, left = points.index(chosen), _left(layers, chosen.kept)
    lent = replace(whole, outcome=replace(whole.outcome, model=drafts[place]))
    anew = flow.correct(left) if chosen.kept else whole
    same = anew.outcome.model == lent.outcome.model
    finals = [flow.finish(draft, left) for draft in ([anew] if same else [anew, lent])]
    qualities = trials.judge(reference, [outcome.model for outcome in finals], budget, evidence)
    best = max(range(len(finals)), key=lambda number: budget.merit(qualities[number]))
    points[place] = replace(chosen, quality=qualities[best])
    if not budget.met(qualities[best]):
        raise _unmet(points, budget, len(layers))
    outcome = finals[best]
    return replace(
        outcome,
        results={**outcome.results, "front": front.table(points, points[place])},
        metrics={**outcome.metrics, "quantize_kept_layers": len(chosen.kept)},
        kept=dict.fromkeys(chosen.kept, "kept in float for the budget"),
    )


def _left(layers: Sequence[str], kept: Collection[str]) -> list[str]:
    return [name for name in layers if name not in kept]


def ranked(flow: Flow, layers: Sequence[str], quantized: ModelProto, evidence: Evidence) -> list[str]:
    """Order the layers that may be kept in float, those that remove most error per time lost first.

    Args:
        flow: How layers are quantized.
        layers: Names of the layers that can be.
        quantized: The graph in which all of them are.
        evidence: Rows to measure on.
    """
    inputs = trials.inputs_of(flow.model)
    feeds = sensitivity.spread(evidence.read("read rows to measure layers on", None), inputs)
    if not feeds:
        raise StageError("the data have no rows that the model could read")
    noise = Noise(switches.build(flow.model, quantized, flow.marks(layers)), flow.marks, feeds, evidence.device)
    errors = noise.alone(layers, lambda names: evidence.track(names, "measure each layer's error"))
    costs = cost.measure(
        flow.model,
        layers,
        flow.marks,
        lambda some: flow.align(flow.write(some)),
        rows.take(feeds[0], inputs, 1),
        device=evidence.device,
    )
    return order(flow, errors, costs, SIZES[-1])


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
        return costs.of(kept, cost.crossings(flow.model, flow.marks(_left(list(errors), kept))))

    found: list[str] = []
    now = spent(found)
    while left and len(found) < most:
        times = {name: spent([*found, name]) for name in left}
        taken = max(left, key=lambda name: errors[name] / max(times[name] - now, least))
        found.append(taken)
        left.remove(taken)
        now = times[taken]
    return found


def _lent(model: ModelProto, donor: ModelProto) -> ModelProto:
    """Give a graph the constants of the same name of another one. Changes and gives `model`."""
    constants = {item.name: item for item in donor.graph.initializer}
    for item in model.graph.initializer:
        if item.name in constants:
            item.CopyFrom(constants[item.name])
    return model


def _unmet(points: Sequence[Point], budget: Budget, layers: int) -> StageError:
    nearest = front.best(points, budget)
    tried = "; ".join(
        f"{len(point.kept)} kept: {point.quality[budget.measure]:.4g}, {point.speed.value:.2f} times as fast as float32"
        for point in points
    )
    return StageError(
        f"no mixture is within the budget of {budget.measure} {budget.limit:g}; the best keeps {len(nearest.kept)} of "
        f"{layers} layers in float and has {nearest.quality[budget.measure]:.4g}, at {nearest.speed.value:.2f} times "
        f"the float model's speed and {nearest.size:,} bytes",
        where="budget",
        then=f"ask for less, give more rows, or correct (`correction: rounding`). Measured: {tried}",
    )

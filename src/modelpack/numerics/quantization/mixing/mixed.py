"""Accuracy-controlled mixed precision: as few layers as possible stay float, the cheapest in measured time.

1. The error that each layer brings alone is measured, and the time that it saves; by both they are ordered (`ranking`).
2. Growing sets of the first are kept in float. Each set's graph is measured (`trials`): outputs on all rows, and times
   in turns with the float model and with each other.
3. A correction changes no times, but takes its own. So it is made for few sets: quality rises with the set, and the
   smallest that meets the budget is found by halving.
4. Of the sets from there on the fastest is taken (`front`); where times do not differ beyond noise, the smallest.

Only a finished file that was measured itself meets the budget. Times differ between machines and runs, and so may the
choice where sets are near each other; no time is part of the file.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from modelpack.errors import StageError
from modelpack.numerics.quantization.mixing import front, ranking, trials

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from onnx import ModelProto

    from modelpack.numerics.quantization.mixing.flow import Flow
    from modelpack.numerics.quantization.mixing.front import Point
    from modelpack.numerics.quantization.settings import Budget, Evidence, Outcome

SIZES = (0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
"""Numbers of layers that are tried, as far as there are more layers."""

REASON = "chosen by `budget`"


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
        StageError: When no mixture is within the budget, with the one that comes nearest; the others are noted.
    """
    trials.check(reference, budget, evidence)
    kept_first = ranking.ranked(flow, layers, SIZES[-1], evidence)
    sets = [tuple(kept_first[:size]) for size in SIZES if size < max(len(layers), 1)]
    plain = {kept: flow.align(flow.write(_left(layers, kept))) for kept in sets}
    points = trials.measure(reference, plain, budget, evidence)
    files = Files(reference, flow, tuple(layers), budget, evidence, points)
    place = search(files)
    if place is None:
        raise _unmet(files)
    outcome, chosen = files.made[place], points[place]
    return replace(
        outcome,
        results={**outcome.results, "front": front.table(points, chosen)},
        metrics={**outcome.metrics, "quantize_kept_layers": len(chosen.kept)},
        kept=dict.fromkeys(chosen.kept, REASON),
    )


@dataclass
class Files:
    """The growing sets of layers kept in float, and the finished files of some of them.

    Attributes:
        reference: The float model.
        flow: How its layers are quantized.
        layers: Names of the layers that can be.
        budget: How close files must be.
        evidence: Rows to correct and to measure on.
        points: What was measured of each set, the smallest first; of the finished file once there is one.
        made: Place of a set → its finished file.
    """

    reference: ModelProto
    flow: Flow
    layers: tuple[str, ...]
    budget: Budget
    evidence: Evidence
    points: list[Point]
    made: dict[int, Outcome] = field(default_factory=dict)

    def met(self, place: int) -> bool:
        """Whether the finished file of a set is within the budget; made and measured when first asked for."""
        if place not in self.made:
            left = _left(self.layers, self.points[place].kept)
            self.made[place] = self.flow.finish(self.flow.correct(left), left)
            (quality,) = trials.judge(self.reference, [self.made[place].model], self.budget, self.evidence)
            self.points[place] = replace(self.points[place], quality=quality, corrected=self.flow.corrects)
        return self.budget.met(self.points[place].quality)


def search(files: Files) -> int | None:
    """Find the fastest set whose finished file is within the budget; None when there is none."""
    if files.flow.corrects:
        # What all layers come to when corrected is worth knowing in any case, and often enough.
        first = 0 if files.met(0) else bisect_left(range(len(files.points)), True, lo=1, key=files.met)
        left = list(range(first, len(files.points)))
    else:
        left = [place for place, point in enumerate(files.points) if files.budget.met(point.quality)]
    while left:
        place = files.points.index(front.fastest([files.points[place] for place in left]))
        if files.met(place):
            return place
        left.remove(place)
    return None


def _left(layers: Sequence[str], kept: Collection[str]) -> list[str]:
    return [name for name in layers if name not in kept]


def _unmet(files: Files) -> StageError:
    budget, total = files.budget, len(files.layers)
    for point in files.points:
        files.evidence.note(front.sentence(point, budget, total, corrects=files.flow.corrects))
    nearest = front.best(files.points, budget)
    more = "" if files.flow.corrects else ", or add `correction: rounding`"
    return StageError(
        f"no mixture of float and quantized layers has {budget}",
        where="budget",
        then=f"the best {front.sentence(nearest, budget, total, corrects=files.flow.corrects)}; ask for less{more}",
    )

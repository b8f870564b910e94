"""Which units go: the least important ones whose loss brings a model to its target."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from modelpack.numerics.pruning import aim, importance, plan, rounding, scope
from modelpack.numerics.pruning.plan import Removal
from modelpack.numerics.pruning.search import Search

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

    from modelpack.numerics.pruning.groups import Counts, Group
    from modelpack.numerics.pruning.importance import Evidence, Importance
    from modelpack.numerics.pruning.rounding import Rounding
    from modelpack.numerics.pruning.scope import Scope
    from modelpack.numerics.pruning.targets import Meter, Target

_ATTEMPTS = 6
"""Times that a choice is measured at most, where estimates are not exact."""


@dataclass(frozen=True)
class Worth:
    """How channels are judged.

    Attributes:
        method: The measure of importance.
        scope: Among which units it is compared.
        evidence: Rows and loss, for the methods that ask the loss.
        seed: For the methods that draw.
    """

    method: Importance
    scope: Scope = "global"
    evidence: Evidence | None = None
    seed: int = 0


@dataclass(frozen=True)
class Choice:
    """What goes, and what then stays.

    Attributes:
        removals: Units to take, by group.
        fraction: What stays of the target's quantity, measured.
        steps: By group: what the channels that stay are a multiple of.
    """

    removals: tuple[Removal, ...]
    fraction: float
    steps: tuple[int, ...]


@dataclass(frozen=True)
class Ranking:
    """The units of some groups in the order in which they go.

    Attributes:
        groups: The groups.
        units: By group: the root indices of each unit, least important first.
        keys: By group: what the units are ordered by among all; infinite for those that must stay.
    """

    groups: Sequence[Group]
    units: Sequence[Sequence[tuple[int, ...]]]
    keys: Sequence[Sequence[float]]

    def removals(self, counts: Counts) -> tuple[Removal, ...]:
        """Take the first units of every group."""
        return tuple(
            Removal(group, tuple(root for unit in units[:count] for root in unit))
            for group, units, count in zip(self.groups, self.units, counts, strict=True)
        )

    def allowed(self, steps: Sequence[int]) -> list[tuple[int, ...]]:
        """List by group how many units may go."""
        removable = [sum(key != float("inf") for key in keys) for keys in self.keys]
        return [rounding.allowed(*each) for each in zip(self.groups, steps, removable, strict=True)]


def rank(module: nn.Module, groups: Sequence[Group], worth: Worth, meter: Meter) -> Ranking:
    """Order units by importance, which is set against their cost where it is a change of the loss.

    Raises:
        StageError: When the method does not fit the model or the rows.
    """
    blocks = importance.scores(worth.method, module, groups, worth.evidence, worth.seed)
    ranked = [group.ranked(values) for group, values in zip(groups, blocks, strict=True)]
    scores = [[score for score, _ in units] for units in ranked]
    if importance.in_units_of_loss(worth.method):
        costs = [_cost(number, groups, meter) for number in range(len(groups))]
        scores = [[score / cost for score in values] for values, cost in zip(scores, costs, strict=True)]
    keys = scope.keys(worth.scope, module, groups, scores)
    return Ranking(groups, [[roots for _, roots in units] for units in ranked], keys)


def _cost(number: int, groups: Sequence[Group], meter: Meter) -> float:
    """Give what one unit of a group costs, averaged over half of them: a single one may cost nothing for itself."""
    half = max(1, groups[number].units // 2)
    counts = tuple(half if other == number else 0 for other in range(len(groups)))
    return max((meter.estimate((0,) * len(groups)) - meter.estimate(counts)) / half, 1e-12)


def choose(module: nn.Module, ranking: Ranking, target: Target, meter: Meter, rounded: Rounding) -> Choice:
    """Find how many units of each group go, and measure what then stays.

    Args:
        module: The model.
        ranking: The order in which units go.
        target: What shall become smaller.
        meter: The target's, opened for these groups.
        rounded: What the channels that stay are a multiple of; made finer where it adapts and the target needs it.

    Returns:
        The choice; the nearest possible one when the target cannot be met.
    """
    finest: Rounding | None = rounded
    found: list[Choice] = []
    scales = _Scales(module, ranking, target, meter)
    while finest is not None and not scales.spent:
        found.append(_nearest(scales, finest.steps(ranking.groups)))
        if target.met(found[-1].fraction):
            return found[-1]
        finest = finest.finer()
    return min(found, key=lambda choice: abs(choice.fraction - target.keep))


class _Scales:
    """Measures choices, each once, and only as often as the target allows."""

    def __init__(self, module: nn.Module, ranking: Ranking, target: Target, meter: Meter) -> None:
        self.ranking, self.target, self.meter = ranking, target, meter
        self._module = module
        self._known: dict[Counts, float] = {}

    @property
    def spent(self) -> bool:
        return len(self._known) >= self.target.trials

    def weigh(self, counts: Counts) -> float | None:
        """Give what stays; None where that is not known and no more may be measured."""
        if counts not in self._known:
            if self.spent:
                return None
            self._known[counts] = self.meter.measure(plan.apply(self._module, self.ranking.removals(counts)))
        return self._known[counts]


def _nearest(scales: _Scales, steps: tuple[int, ...]) -> Choice:
    """Search by estimates, measure, and aim as much higher or lower as the estimate was wrong."""
    ranking, target = scales.ranking, scales.target
    search = Search(ranking.keys, ranking.allowed(steps), scales.meter.estimate)
    tried: dict[Counts, aim.Try] = {}
    sought = target.keep
    while len(tried) < _ATTEMPTS:
        counts = search.run(sought, target.tolerance / 4)
        found = scales.weigh(counts) if counts not in tried else None
        if found is None:
            break
        tried[counts] = (sought, found)
        if target.met(found):
            break
        sought = aim.following(list(tried.values()), target.keep)
    best = min(tried, key=lambda counts: abs(tried[counts][1] - target.keep))
    return Choice(ranking.removals(best), tried[best][1], steps)

"""Which units go: the least important ones whose loss brings a model to its target."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from modelpack.numerics.pruning import aim, importance, plan, rounding, scope
from modelpack.numerics.pruning.plan import Removal
from modelpack.numerics.pruning.search import Search

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

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

    def allowed(self, group: int, step: int, least: float) -> tuple[int, ...]:
        """List how many units a group may lose, where a share of `least` stays."""
        removable = sum(key != float("inf") for key in self.keys[group])
        return rounding.allowed(self.groups[group], step, removable, least)


@dataclass(frozen=True)
class _Space:
    """What may be chosen from.

    Attributes:
        steps: By group: what its channels are a multiple of.
        allowed: By group: how many units it may lose.
        least: Share of every group that stays.
        bends: Whether a single group may go by a finer step where the target cannot be met otherwise.
    """

    steps: tuple[int, ...]
    allowed: list[tuple[int, ...]]
    least: float
    bends: bool


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
    found: list[Choice] = []
    scales = _Scales(module, ranking, target, meter)
    for space in _spaces(ranking, target, meter, rounded):
        if found and scales.spent:
            break
        found.append(_nearest(scales, space))
        if target.met(found[-1].fraction):
            return found[-1]
    return min(found, key=lambda choice: abs(choice.fraction - target.keep))


def _spaces(ranking: Ranking, target: Target, meter: Meter, rounded: Rounding) -> Iterator[_Space]:
    """List what may be chosen from, the most welcome first: no bottlenecks, then whole blocks of channels."""
    before = meter.estimate((0,) * len(ranking.groups))
    for least in (rounding.welcome_share(min(1.0, target.keep / before)), rounding.LEAST_SHARE):
        for steps in rounded.levels(ranking.groups):
            allowed = [ranking.allowed(group, step, least) for group, step in enumerate(steps)]
            # What even the narrowest choice does not reach need not be measured, as long as there is a narrower one.
            if least == rounding.LEAST_SHARE or meter.estimate(tuple(most[-1] for most in allowed)) <= target.keep:
                yield _Space(steps, allowed, least, rounded.adapts)


class _Scales:
    """Measures choices, each once, and only as often as the target allows."""

    def __init__(self, module: nn.Module, ranking: Ranking, target: Target, meter: Meter) -> None:
        self.ranking, self.target, self.meter = ranking, target, meter
        self._module = module
        self._known: dict[Counts, float] = {}

    @property
    def spent(self) -> bool:
        return len(self._known) >= self.target.trials

    @property
    def sought(self) -> float:
        """The estimate to aim at, after all that was measured so far."""
        tries = [(self.meter.estimate(counts), found) for counts, found in self._known.items()]
        before = self.meter.estimate((0,) * len(self.ranking.groups))
        return aim.following(tries, self.target.keep, before) if tries else self.target.keep

    def weigh(self, counts: Counts) -> float | None:
        """Give what stays; None where that is not known and no more may be measured."""
        if counts not in self._known:
            if self.spent:
                return None
            self._known[counts] = self.meter.measure(plan.apply(self._module, self.ranking.removals(counts)))
        return self._known[counts]


def _nearest(scales: _Scales, space: _Space) -> Choice:
    """Search by estimates, measure, and aim as much higher or lower as the estimate was wrong."""
    ranking, target = scales.ranking, scales.target
    search = Search(ranking.keys, space.allowed, scales.meter.estimate)
    tried: dict[Counts, tuple[float, tuple[int, ...]]] = {}
    while len(tried) < _ATTEMPTS:
        sought = scales.sought
        counts, steps = search.run(sought, target.tolerance), space.steps
        if space.bends and search.off(counts, sought) > target.tolerance:
            counts, steps = _bent(search, scales, space, counts, sought)
        found = scales.weigh(counts) if counts not in tried else None
        if found is None:
            break
        tried[counts] = found, steps
        if target.met(found):
            break
    best = min(tried, key=lambda counts: abs(tried[counts][0] - target.keep))
    return Choice(ranking.removals(best), *tried[best])


def _bent(
    search: Search, scales: _Scales, space: _Space, counts: Counts, sought: float
) -> tuple[Counts, tuple[int, ...]]:
    """Let one group, as wide as can be, go by a finer step, as coarse as can be, where that alone meets the target.

    In a wide layer a block that is not full is the smallest part of all.
    """
    ranking, tolerance = scales.ranking, scales.target.tolerance / 2
    widths = [(group.units - count) * group.unit_width for group, count in zip(ranking.groups, counts, strict=True)]
    order = sorted(range(len(counts)), key=lambda group: (-widths[group], group))
    step = max(space.steps) // 2
    while step:
        for group in order:
            if space.steps[group] > step:
                bent = search.bent(counts, group, ranking.allowed(group, step, space.least), sought)
                if search.off(bent, sought) <= tolerance:
                    return bent, (*space.steps[:group], step, *space.steps[group + 1 :])
        step //= 2
    return counts, space.steps
